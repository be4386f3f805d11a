-- How much was drawn: a row for all of it (an empty name), and one for every label. It outlives the jobs themselves.

CREATE TABLE usage (
    name     TEXT    NOT NULL,
    day      INTEGER NOT NULL, -- since 1970-01-01, UTC
    tenant   TEXT    NOT NULL,
    endpoint TEXT    NOT NULL,
    key_id   TEXT    NOT NULL,
    value    TEXT    NOT NULL,
    requests INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    units    INTEGER NOT NULL,
    PRIMARY KEY (name, day, tenant, endpoint, key_id, value)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_age ON usage (day);

-- Everything that a search may ask for, so that it reads whole rows only for what it shows.
CREATE INDEX job_search ON job (tenant, seq, endpoint, status, created_at, key_id);
