from depot.testing.harness.environment import Parts, prepare

prepare(
    database_parts=Parts(
        host="DATABASE__HOST",
        port="DATABASE__PORT",
        user="DATABASE__USER",
        password="DATABASE__PASSWORD",
        name="DATABASE__NAME",
    )
)
