from tests.harness.environment import prepare

prepare(database_url="CLINIC_DSN", database_loopback=True)
