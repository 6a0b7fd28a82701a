from tests.harness.environment import prepare

prepare(database_url={"POLLS_URL": "postgresql+psycopg"})
