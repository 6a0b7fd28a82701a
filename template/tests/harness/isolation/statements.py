"""What a statement does that its session remembers, told from its text.

What a statement reaches, it names: functions, and the tables, views and operators behind which there
are more of them. So `Names` goes through the catalogs once: volatile functions, but for those that
are known to leave nothing; functions whose text does what sessions remember; sequences of which
a session takes several values at a time; and whatever names one of these in its own definition, by a
default, a trigger, a rule, a policy, a view, and so on.
A statement that names none of them, and is itself a query or a change of rows, leaves nothing.

What is not understood counts as remembered: that costs a connection, not a wrong test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..checks.uncommitted import COMMENTS
from ..golden.databases import Connection

# Nothing but one of these. A setting of one's own (`my.tenant`) leaves an empty one, even when it
# is local.
_PLAIN = re.compile(
    r"\s*(?:begin|commit|delete|insert|merge|release|rollback|savepoint|select|show|update|values|with"
    r"|set\s+local\s+\w+\s*(?:=|to\b))(?!.*;\s*\S)",
    re.IGNORECASE | re.DOTALL,
)
_HIDES = re.compile(r"\bset(?:_config)?\b[^;]*\btrack_counts\b", re.IGNORECASE)
_DEFINES = re.compile(
    rf"(?:^|;){COMMENTS}"
    r"(?:alter|call|create|do|drop|import|refresh|reindex|security)\b",
    re.IGNORECASE | re.DOTALL,
)
_ENDS = re.compile(r"\bpg_(?:terminate|cancel)_backend\b", re.IGNORECASE)

# In the body of a function: what a session remembers, and SQL that is put together there.
_BODY = re.compile(
    r"\b(?:discard|execute|hold|listen|load|prepare|reset|temp|temporary|unlisten)\b"
    r"|(?:^|;|\b(?:begin|else|loop|then)\b)\s*set\b",
    re.IGNORECASE,
)

_REMEMBERED = ("pg_settings", "temp", "temporary")
"""By these, a query or a change of rows does what a session remembers."""

_WORD = re.compile(r"\w+")
_MANY = 1000  # different statements, most of them an ORM's

_HARMLESS = """
    clock_timestamp currval gen_random_bytes gen_random_uuid gen_salt lastval lo_creat lo_create lo_from_bytea
    lo_get lo_lseek64 lo_open lo_put lo_unlink loread lowrite nextval pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_database_size pg_indexes_size pg_notify pg_relation_size pg_sleep
    pg_sleep_for pg_sleep_until pg_stat_clear_snapshot pg_stat_force_next_flush pg_table_size
    pg_total_relation_size pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared random random_normal setval
    suppress_redundant_updates_trigger timeofday tsvector_update_trigger tsvector_update_trigger_column
    uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4 uuidv4 uuidv7
"""
"""Volatile functions of Postgres, and of extensions in common use, that leave nothing with a session."""

# Names, the definition behind them, and what that is: a function that is known by its volatility
# alone (`!`), a function's body (`b`), something else that names others (`-`). The name `*` is for
# what runs unnamed.
_OBJECTS = """
    SELECT proname, CASE WHEN l.lanname IN ('sql', 'plpgsql') THEN coalesce(pg_get_function_sqlbody(p.oid), prosrc) ELSE '' END,
           CASE WHEN l.lanname IN ('sql', 'plpgsql') THEN 'b' ELSE '!' END
    FROM pg_proc p JOIN pg_language l ON l.oid = prolang
    WHERE prokind <> 'a' AND proname <> ALL(%s) AND format_type(prorettype, NULL) !~ 'internal|_handler' AND (
        p.oid >= 16384 AND (l.lanname NOT IN ('c', 'internal') OR provolatile = 'v')
        OR p.oid < 16384 AND (provolatile = 'v' OR proname ~ '_to_xml'))
    UNION ALL SELECT proname, concat_ws(' ', aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn), '-'
    FROM pg_aggregate JOIN pg_proc p ON p.oid = aggfnoid WHERE p.oid >= 16384
    UNION ALL SELECT oprname, oprcode::text, '-' FROM pg_operator WHERE oid >= 16384
    UNION ALL SELECT '*', castfunc::regproc::text, '-' FROM pg_cast WHERE oid >= 16384 AND castfunc <> 0
    UNION ALL SELECT typname, concat_ws(' ', typinput, typoutput, typreceive, typsend, format_type(typbasetype, NULL)), '-'
    FROM pg_type WHERE oid >= 16384 AND typtype IN ('b', 'd')
    UNION ALL SELECT typname, pg_get_constraintdef(c.oid), '-' FROM pg_constraint c JOIN pg_type t ON t.oid = contypid
    UNION ALL SELECT relname, format_type(atttypid, NULL), '-'
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE c.oid >= 16384 AND attnum > 0 AND atttypid >= 16384
    UNION ALL SELECT relname, '', '!' FROM pg_class WHERE relkind = 'f'
    UNION ALL SELECT relname, '', '!' FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE seqcache > 1
    UNION ALL SELECT owner.relname, sequence.relname, '-'
    FROM pg_depend JOIN pg_class sequence ON sequence.oid = objid JOIN pg_class owner ON owner.oid = refobjid
    WHERE deptype = 'i' AND classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND sequence.relkind = 'S'
    UNION ALL SELECT relname, pg_get_viewdef(oid), '-' FROM pg_class WHERE relkind IN ('v', 'm') AND oid >= 16384
    UNION ALL SELECT relname, pg_get_ruledef(r.oid), '-'
    FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE rulename <> '_RETURN'
    UNION ALL SELECT relname, concat_ws(' ', tgfoid::regproc, replace(pg_get_triggerdef(t.oid), 'EXECUTE', '')), '-'
    FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal
    UNION ALL SELECT relname, concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)), '-'
    FROM pg_policy JOIN pg_class c ON c.oid = polrelid
    UNION ALL SELECT relname, pg_get_expr(adbin, adrelid), '-' FROM pg_attrdef JOIN pg_class c ON c.oid = adrelid
    UNION ALL SELECT relname, pg_get_constraintdef(k.oid), '-'
    FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid WHERE contype = 'c'
    UNION ALL SELECT relname, pg_get_indexdef(indexrelid), '-'
    FROM pg_index JOIN pg_class c ON c.oid = indrelid
    WHERE c.oid >= 16384 AND (indexprs IS NOT NULL OR indpred IS NOT NULL)
    UNION ALL SELECT parent.relname, child.relname, '-'
    FROM pg_constraint JOIN pg_class parent ON parent.oid = confrelid JOIN pg_class child ON child.oid = conrelid
    WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
    UNION ALL SELECT parent.relname, child.relname, '-'
    FROM pg_inherits JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class child ON child.oid = inhrelid
"""


@dataclass(frozen=True)
class Effect:
    """What a statement does.

    Attributes:
        leaves_nothing: with its session, beyond its transaction.
        defines: something anew, or ends sessions: what is prepared or kept may not fit any more.
        hides: what it changes from being counted.
    """

    leaves_nothing: bool
    defines: bool
    hides: bool


class Names:
    """The names in a database by which a statement reaches what its session remembers.

    Args:
        connection: to the database. None: it is not known, and any statement may.
    """

    def __init__(self, connection: Connection | None) -> None:
        self._words: set[str] = set()
        self._others: list[tuple[str, set[str]]] = []  # that are no single words
        self._effects: dict[str, Effect] = {}
        self._all = connection is None
        if connection is not None:
            self._find(connection)

    def _find(self, connection: Connection) -> None:
        rows = connection.execute(_OBJECTS, (_HARMLESS.split(),)).fetchall()
        new = [
            *_REMEMBERED,
            *(
                name
                for name, body, kind in rows
                if kind == "!" or (kind == "b" and _BODY.search(body))
            ),
        ]
        while new:
            for name in new:
                self._add(name)
            rows = [row for row in rows if not self._has(row[0])]
            new = [name for name, definition, _ in rows if definition and self._has(definition)]

    def _add(self, name: str) -> None:
        words = set(_WORD.findall(name.lower()))
        if name == "*":
            self._all = True
        elif words == {name.lower()}:
            self._words |= words
        else:
            self._others.append((name.lower(), words))

    def _has(self, text: str) -> bool:
        """Whether one of them stands in a text, whatever else that means there."""
        text = text.lower()
        words = set(_WORD.findall(text))
        return (
            self._all
            or not words.isdisjoint(self._words)
            or 'u&"' in text  # a name in other letters
            or any(parts <= words if parts else name in text for name, parts in self._others)
        )

    def effect(self, statement: str) -> Effect:
        """What a statement does. One that was asked for before is answered from memory."""
        known = self._effects.get(statement)
        if known is None:
            if len(self._effects) == _MANY:
                self._effects.clear()
            known = self._effects[statement] = Effect(
                leaves_nothing=_PLAIN.match(statement) is not None and not self._has(statement),
                defines=_DEFINES.search(statement) is not None
                or _ENDS.search(statement) is not None,
                hides=_HIDES.search(statement) is not None,
            )
        return known
