"""Make the schema and its rows: python -m app.seed"""

import os
from pathlib import Path

import psycopg

SCHEMA = Path(__file__).with_name("schema.sql")

if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
        connection.execute(SCHEMA.read_bytes())
