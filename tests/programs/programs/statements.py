"""Statements of every kind, over the tables of app/schema.sql. What stands in braces is drawn.

What a statement returns depends on nothing but what was done before: neither on the order of rows
on a page nor on the time, and on no number that the server gives out.
"""

from __future__ import annotations

WORDS: dict[str, list[str]] = {
    "id": ["1", "2", "3", "4", "9"],
    "new": ["20", "21", "22"],
    "name": ["'x'", "'one'", "''", "E'it''s \\\\ \\u00fc'"],
    "quantity": ["0", "1", "7", "-1"],
    "sequence": ["called", "fresh", "falling", "child_id_seq", '"Odd Schema"."Odd ""Table"" 1_id_seq"'],
    "table": ["no_key", "cache", "node", "wide", "big", "part", "base", "loud", "nothing", "audit"],
    "setting": [
        *("work_mem = '3MB'", "search_path = \"Odd Schema\", public", "TimeZone = 'Asia/Tokyo'", "app.tenant = 'one'"),
        *("statement_timeout = '9s'", "default_transaction_read_only = on", "session_replication_role = replica"),
        *("default_transaction_isolation = 'serializable'", "application_name = 'program'", "DateStyle = 'German'"),
        *("track_counts = off", "client_encoding = 'LATIN1'", "row_security = off", "my.own = '1'"),
        *("extra_float_digits = -3", "enable_seqscan = off", "bytea_output = escape", "synchronous_commit = on"),
    ],
    "kept": ["DROP", "DELETE ROWS", "PRESERVE ROWS"],
    "level": ["SERIALIZABLE", "REPEATABLE READ, READ ONLY", "READ COMMITTED"],
    "lock": ["pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_advisory_xact_lock"],
}  # fmt: skip

ROWS: dict[str, list[str]] = {
    "insert": [
        "INSERT INTO no_key VALUES ({id}, {name})",
        "INSERT INTO parent (name) VALUES ({name}) RETURNING id, name, mood",
        "INSERT INTO parent OVERRIDING SYSTEM VALUE VALUES ({new}, {name}, 'sad')",
        "INSERT INTO node VALUES ({new}, {id})",
        "INSERT INTO node VALUES ({new}, {new} + 1)",
        "INSERT INTO place VALUES ({id}, {name})",
        "INSERT INTO booking VALUES ('[2024-01-0{id},2024-02-01)')",
        "INSERT INTO wide (id, long, pairs) VALUES ({new}, repeat(md5({name}), 3000), ARRAY[ROW(1, {name})]::pair[])",
        "INSERT INTO empty_one DEFAULT VALUES RETURNING id",
        "INSERT INTO nothing DEFAULT VALUES",
        "INSERT INTO once_wider VALUES ({new}, {name})",
        'INSERT INTO "Odd Schema"."Odd ""Table"" 1" ("select") VALUES ({name}) RETURNING id',
        "INSERT INTO cache VALUES ({new}, {name})",
        "INSERT INTO big SELECT 10000 + i, {name} FROM generate_series(1, 400) i",
        "INSERT INTO guarded VALUES ({new})",
        "INSERT INTO secret VALUES ('one', {name})",
        "INSERT INTO names VALUES ({name})",
        "WITH new AS (INSERT INTO egg VALUES ({new}, {new}) RETURNING id) INSERT INTO hen SELECT id, id FROM new",
    ],
    "generated and identity": [
        "INSERT INTO child (parent_id, quantity) VALUES ({id}, {quantity}) RETURNING id, doubled, tripled",
        "INSERT INTO leaf (child_id) SELECT id FROM child ORDER BY id RETURNING id, child_id",
        "UPDATE leaf SET id = DEFAULT WHERE id = 1000 RETURNING id",
    ],
    "update": [
        "UPDATE parent SET name = name || {name} WHERE id = {id} RETURNING name",
        "UPDATE child SET quantity = quantity + {quantity} RETURNING id, doubled",
        "UPDATE wide SET document = '[{id}]', float = 0, bytes = NULL WHERE id = {id}",
        "UPDATE wide SET long = long || 'x'",
        "UPDATE wide SET (numbers[1], pair.word) = ({id}, {name}) WHERE pair IS NOT NULL",
        "UPDATE no_key SET word = {name} WHERE number = {id}",
        "UPDATE big SET payload = {name} WHERE id % 500 = {id}",
        "UPDATE big SET payload = payload",
        "UPDATE once_wider SET later = {id}",
        "UPDATE cache SET word = {name}",
        "UPDATE guarded SET id = id + {new}",
        "UPDATE node SET up = {id} WHERE id = 1",
    ],
    "delete": [
        "DELETE FROM {table}",
        "DELETE FROM no_key WHERE number = {id}",
        "DELETE FROM wide WHERE id = {id}",
        "DELETE FROM big WHERE id > 2990",
        "DELETE FROM node WHERE id = {id}",
        "DELETE FROM leaf RETURNING id",
        "WITH gone AS (DELETE FROM child WHERE id = {id} RETURNING id) INSERT INTO cache SELECT id + 50, 'gone' FROM gone",
    ],
    "cascade": ["DELETE FROM parent WHERE id = {id}", "DELETE FROM parent", "DELETE FROM child WHERE id = {id}"],
    "merge": [
        "MERGE INTO child USING (VALUES ({id}, {quantity})) AS new (id, quantity) ON child.id = new.id "
        "WHEN MATCHED AND new.quantity = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET quantity = new.quantity "
        "WHEN NOT MATCHED THEN INSERT (quantity) VALUES (new.quantity) RETURNING merge_action(), child.id",
    ],
    "upsert": [
        "INSERT INTO parent (name) VALUES ({name}) ON CONFLICT (name) DO UPDATE SET mood = 'glad' RETURNING id, mood",
        "INSERT INTO cache VALUES ({id}, {name}) ON CONFLICT DO NOTHING",
    ],
    "copy": ["COPY no_key FROM PROGRAM 'printf \"7,seven\\n8,\"' CSV"],
    "trigger and rule": [
        "INSERT INTO loud VALUES ({name}) RETURNING word",
        "INSERT INTO plan VALUES ({name})",
        "INSERT INTO immortal VALUES ({name})",
        "DELETE FROM immortal",
        "TRUNCATE immortal",
    ],
    "partition": [
        "INSERT INTO part VALUES ({new} - 5, {name})",
        "UPDATE part SET day = day + 10 WHERE day = {id} RETURNING tableoid::regclass::text",
        "DELETE FROM part_low",
        "DELETE FROM part WHERE day = 11",
    ],
    "inheritance": [
        "INSERT INTO derived VALUES ({new}, {name}, {id})",
        "UPDATE base SET word = {name}",
        "DELETE FROM ONLY base",
    ],
    "deferred": [
        "UPDATE place SET number = number + 1",
        "UPDATE egg SET hen = {id} WHERE id = {id}",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "DELETE FROM hen WHERE id = {id}",
    ],
    "truncate": [
        "TRUNCATE {table}",
        "TRUNCATE parent CASCADE",
        "TRUNCATE child, leaf RESTART IDENTITY",
        "TRUNCATE ONLY base",
    ],
}  # fmt: skip

READS: dict[str, list[str]] = {
    "read": [
        "SELECT * FROM child",
        "SELECT id, name, mood FROM parent",
        "SELECT count(*), min(word), max(number) FROM no_key",
        "SELECT what, count(*) FROM audit GROUP BY what",
        "SELECT id, md5(wide::text) FROM wide",
        "SELECT document, source, address, mood FROM wide WHERE id = {id}",
        "SELECT count(*), sum(hashtext(payload)) FROM big",
        "SELECT tableoid::regclass::text, * FROM part",
        "SELECT tableoid::regclass::text, * FROM base",
        "SELECT * FROM totals",
        "SELECT * FROM secret",
        "SELECT (SELECT count(*) FROM nothing), (SELECT count(*) FROM cache), (SELECT count(*) FROM guarded)",
        "SELECT * FROM node",
        "SELECT * FROM leaf",
        "SELECT lo_get(90000)",
        "SELECT relname, reltuples FROM pg_class WHERE relname IN ('made', 'made_2')",
    ],
    "state": [
        "SELECT current_setting('app.tenant', true), current_setting('my.own', true), current_setting('work_mem')",
        "SELECT current_user::text, session_user::text, current_schemas(false)::text",
        "SELECT current_setting('TimeZone'), current_setting('session_replication_role'), '2024-01-01'::date::text",
        "SELECT name, statement FROM pg_prepared_statements WHERE from_sql",
        "SELECT name FROM pg_cursors WHERE name = 'held'",
        "SELECT pg_listening_channels()",
        "SELECT mode, objid::int FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'",
        "SHOW transaction_isolation",
        "SELECT gid ~ 'left' FROM pg_prepared_xacts WHERE database = current_database()",
    ],
}  # fmt: skip

SEQUENCES: dict[str, list[str]] = {
    "sequence": [
        "SELECT nextval('{sequence}')",
        "SELECT setval('{sequence}', 7)",
        "SELECT setval('{sequence}', 5, false)",
        "SELECT nextval('{sequence}'), currval('{sequence}'), lastval()",
        "ALTER SEQUENCE {sequence} RESTART",
        "ALTER SEQUENCE called RESTART WITH {new} INCREMENT 3",
        "ALTER TABLE leaf ALTER id RESTART",
        "ALTER TABLE parent ALTER id RESTART WITH 50",
    ],
}  # fmt: skip

SESSION: dict[str, list[str]] = {
    "setting": [
        "SET {setting}",
        "SET LOCAL {setting}",
        "SELECT set_config('app.tenant', {name}, false)",
        "SELECT set_config('app.tenant', 'two', true)",
        "RESET ALL",
        "UPDATE pg_settings SET setting = '3MB' WHERE name = 'work_mem'",
        "SELECT * FROM tenant",
        "SELECT set_limit(0.5)",
        "SELECT setseed(0.5)",
        "SET TRANSACTION ISOLATION LEVEL {level}",
    ],
    "role": ["SET ROLE program_reader", "SET SESSION AUTHORIZATION program_reader", "RESET ROLE"],
    "prepared statement": ["PREPARE mine AS SELECT 1", "EXECUTE mine", "DEALLOCATE ALL", "DISCARD PLANS", "DISCARD ALL"],
    "temporary": [
        "CREATE TEMP TABLE incoming ON COMMIT {kept} AS SELECT 1 AS one",
        "CREATE TEMP TABLE child (id int)",
        "SELECT 1 AS one INTO TEMP incoming",
        "CREATE TEMP SEQUENCE counting",
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "INSERT INTO incoming VALUES ({id})",
        "DROP TABLE incoming",
        "DISCARD TEMP",
    ],
    "cursor": [
        "DECLARE held CURSOR WITH HOLD FOR SELECT id FROM big ORDER BY id",
        "DECLARE held CURSOR FOR SELECT id FROM parent ORDER BY id",
        "FETCH {id} FROM held",
        "CLOSE ALL",
    ],
    "listen": ["LISTEN orders", "NOTIFY orders, 'one'", "SELECT pg_notify('orders', {name})", "UNLISTEN *"],
    "lock": [
        "SELECT {lock}({id}) IS NULL",
        "SELECT pg_advisory_unlock({id})",
        "LOCK TABLE parent IN EXCLUSIVE MODE",
        "SELECT id FROM parent ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED",
        "SELECT id FROM parent WHERE id = {id} FOR NO KEY UPDATE NOWAIT",
    ],
    "transaction": ["SAVEPOINT s", "ROLLBACK TO s", "RELEASE s", "COMMIT", "ROLLBACK AND CHAIN"],
    "statistics": ["ANALYZE parent, child, big", "VACUUM no_key, parent", "SELECT pg_stat_reset()", "SELECT pg_stat_force_next_flush()"],
}  # fmt: skip

DEFINITIONS: dict[str, list[str]] = {
    "table": [
        "CREATE TABLE made AS SELECT {id} AS id",
        "CREATE TABLE made_2 (id int PRIMARY KEY REFERENCES parent)",
        "DROP TABLE cache",
        "DROP TABLE parent CASCADE",
        "ALTER TABLE child ADD COLUMN more text DEFAULT 'more'",
        "ALTER TABLE child DROP COLUMN doubled",
        "ALTER TABLE no_key ALTER number TYPE text",
        "ALTER TABLE no_key RENAME word TO words",
        "ALTER TABLE no_key ADD CHECK (number < 9) NOT VALID",
        "ALTER TABLE cache SET LOGGED",
        "ALTER TABLE cache SET (fillfactor = 50)",
        "ALTER TABLE cache OWNER TO program_reader",
        "ALTER TABLE guarded DISABLE TRIGGER ALL",
        "ALTER TABLE part DETACH PARTITION part_low",
        "CREATE TABLE part_more PARTITION OF part FOR VALUES FROM (20) TO (30)",
        "VACUUM FULL no_key",
        "CLUSTER parent USING parent_pkey",
    ],
    "index": ["CREATE INDEX ON no_key (word)", "DROP INDEX child_doubled", "REINDEX TABLE parent",
              "CREATE INDEX CONCURRENTLY later ON cache (word)"],
    "type": ["CREATE TYPE made_type AS ENUM ('a')", "ALTER TYPE mood ADD VALUE 'angry'", "DROP DOMAIN positive CASCADE",
             "ALTER TYPE pair ADD ATTRIBUTE third int CASCADE"],
    "function": [
        "CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'SELECT {id}'",
        "CREATE OR REPLACE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 20'",
        "CREATE OR REPLACE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DO $$ BEGIN INSERT INTO no_key VALUES ({id}, 'DO'); COMMIT; INSERT INTO no_key VALUES ({id}, 'DO'); ROLLBACK; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON no_key FOR EACH ROW EXECUTE FUNCTION refuse()",
        "CREATE RULE made AS ON UPDATE TO plan DO INSTEAD NOTHING",
    ],
    "schema and view": [
        "CREATE SCHEMA made_schema",
        "ALTER SCHEMA \"Odd Schema\" RENAME TO odd",
        "CREATE VIEW made_view AS SELECT 1 AS one",
        "CREATE OR REPLACE VIEW names AS SELECT name, id FROM parent",
        "CREATE POLICY made ON secret USING (true)",
        "CREATE STATISTICS made ON number, word FROM no_key",
        "CREATE PUBLICATION made",
        "CREATE SEQUENCE made_sequence",
    ],
    "materialized view": [
        "REFRESH MATERIALIZED VIEW totals",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY totals",
        "REFRESH MATERIALIZED VIEW unfilled",
        "REFRESH MATERIALIZED VIEW totals WITH NO DATA",
    ],
    "grant and comment": [
        "GRANT INSERT ON no_key TO program_reader",
        "REVOKE ALL ON parent FROM program_reader",
        "GRANT CREATE ON SCHEMA public TO program_reader",
        "REVOKE EXECUTE ON FUNCTION lo_get(oid) FROM public",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO program_reader",
        "COMMENT ON TABLE parent IS NULL",
        "COMMENT ON COLUMN no_key.word IS {name}",
    ],
    "extension": ["CREATE EXTENSION citext", "DROP EXTENSION vector CASCADE"],
    "database": [
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''3MB''', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO program_reader', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''changed''', current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('ALTER ROLE program_reader IN DATABASE %I SET app.tenant = ''one''', current_database()); END $$",
    ],
    "large object": [
        "SELECT lo_from_bytea(91000 + {id}, 'more')",
        "SELECT lo_put(90000, 3, 'changed')",
        "SELECT lo_unlink(90000)",
        "GRANT SELECT ON LARGE OBJECT 90000 TO program_reader",
    ],
}  # fmt: skip

ERRORS: dict[str, list[str]] = {
    "failing": [
        "SELECT 1 / 0",
        "SELEC",
        "SELECT * FROM nowhere",
        "INSERT INTO parent OVERRIDING SYSTEM VALUE VALUES (1, 'twice')",
        "INSERT INTO child (quantity) VALUES (-1)",
        "INSERT INTO parent (name) VALUES (NULL)",
        "INSERT INTO leaf (child_id) VALUES (99)",
        "SELECT 'x'::int",
        "DELETE FROM guarded",
        "DO $$ BEGIN INSERT INTO no_key VALUES (0, 'DO'); RAISE EXCEPTION 'no'; END $$",
    ],
}

GROUPS = [ROWS, READS, SEQUENCES, SESSION, DEFINITIONS, ERRORS]

# Without a sequence, and whoever is interrupted in one: nothing tells how far it came.
STEADY = [
    "SELECT 1",
    "UPDATE wide SET float = 7",
    "INSERT INTO cache VALUES (70, 'slow')",
    "DELETE FROM no_key",
    "CREATE TABLE slow (id int)",
    "LISTEN orders",
    "SET app.tenant = 'slow'",
    "SELECT pg_advisory_lock(70)",
    "CREATE TEMP TABLE incoming (id int)",
]
