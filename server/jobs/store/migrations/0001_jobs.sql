-- Jobs and the webhooks they owe. Times are Unix seconds, JSON is text.

CREATE TABLE job (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    endpoint         TEXT    NOT NULL,
    model            TEXT,
    input            TEXT    NOT NULL,
    params           TEXT,
    output           TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    priority         INTEGER NOT NULL CHECK (priority IN (0, 1)),
    queue_rank       REAL    NOT NULL,
    created_at       REAL    NOT NULL,
    start_deadline   REAL,
    started_at       REAL,
    finished_at      REAL,
    owner            TEXT,
    epoch            INTEGER NOT NULL CHECK (epoch >= 0),
    attempt          INTEGER NOT NULL CHECK (attempt >= 0),
    max_attempts     INTEGER NOT NULL CHECK (max_attempts >= 1),
    deaths           INTEGER NOT NULL CHECK (deaths >= 0),
    lone_deaths      INTEGER NOT NULL CHECK (lone_deaths BETWEEN 0 AND deaths),
    lease_until      REAL,
    cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
    is_ephemeral     INTEGER NOT NULL CHECK (is_ephemeral IN (0, 1)),
    webhook_url      TEXT,
    base_url         TEXT    NOT NULL,
    store_io         INTEGER NOT NULL CHECK (store_io IN (0, 1)),
    outcome          TEXT,
    -- A claim is whole or absent, and so is an end.
    CHECK ((status = 'running') = (owner IS NOT NULL)),
    CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CHECK ((status IN ('completed', 'failed', 'cancelled')) = (outcome IS NOT NULL)),
    CHECK ((outcome IS NULL) = (finished_at IS NULL)),
    CHECK (params IS NOT NULL OR outcome IS NOT NULL),
    CHECK (status <> 'queued' OR NOT cancel_requested)
) STRICT;

CREATE INDEX job_waiting ON job (queue_rank, seq) WHERE status = 'queued';
CREATE INDEX job_deadline ON job (start_deadline) WHERE status = 'queued' AND start_deadline IS NOT NULL;
CREATE INDEX job_running ON job (owner) WHERE status = 'running';
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;

-- Whatever the code above this file believes: a job ends once.
CREATE TRIGGER job_ends_once BEFORE UPDATE ON job
WHEN OLD.outcome IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'this job has ended');
END;

CREATE TRIGGER job_epoch_grows BEFORE UPDATE ON job
WHEN NEW.epoch < OLD.epoch
BEGIN
    SELECT RAISE(ABORT, 'an epoch never falls');
END;

CREATE TABLE webhook (
    job_seq INTEGER PRIMARY KEY REFERENCES job (seq) ON DELETE CASCADE,
    due_at  REAL,
    tries   INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    note    TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX webhook_due ON webhook (due_at) WHERE due_at IS NOT NULL;
