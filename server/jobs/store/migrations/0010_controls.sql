-- What the operator holds back: requests of a model or of a key wait until it is resumed.

CREATE TABLE pause (
    kind     TEXT NOT NULL CHECK (kind IN ('model', 'key')),
    name     TEXT NOT NULL,
    since    REAL NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- Seconds by which a waiting job was moved forward in its tenant's line.
ALTER TABLE job ADD COLUMN ahead_s REAL NOT NULL DEFAULT 0;
