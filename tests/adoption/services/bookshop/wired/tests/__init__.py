from tests.harness.environment import prepare

prepare(database_url="DB_URL", redis_url="CACHE_URL", TESTING="1")
