from tests.harness.environment import prepare

prepare(database_url="PARCELS_DATABASE_URL")
