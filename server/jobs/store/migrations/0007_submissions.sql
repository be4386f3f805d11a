-- What a repeated submit is known by: the key that its caller gave it, or its digest if its answer never arrived.

CREATE TABLE submission (
    job_seq        INTEGER PRIMARY KEY REFERENCES job (seq) ON DELETE CASCADE,
    tenant         TEXT    NOT NULL,
    endpoint       TEXT    NOT NULL,
    name           TEXT,
    digest         BLOB    NOT NULL,
    made_at        REAL    NOT NULL,
    is_undelivered INTEGER NOT NULL DEFAULT 0 CHECK (is_undelivered IN (0, 1))
) STRICT;

CREATE INDEX submission_by_name ON submission (tenant, endpoint, name) WHERE name IS NOT NULL;
CREATE INDEX submission_undelivered ON submission (digest) WHERE is_undelivered AND name IS NULL;
CREATE INDEX submission_age ON submission (made_at);
