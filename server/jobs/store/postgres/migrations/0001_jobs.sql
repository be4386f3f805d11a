-- Everything that SQLite's migrations 0001 to 0016 make, and what several nodes need beside it.
-- Times are Unix seconds, JSON is text: it may hold what no json column takes, such as \u0000.

CREATE TABLE job (
    seq              BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id               TEXT    COLLATE "C" NOT NULL UNIQUE,
    endpoint         TEXT    COLLATE "C" NOT NULL,
    model            TEXT    COLLATE "C",
    input            TEXT    NOT NULL,
    params           TEXT,
    output           TEXT    NOT NULL,
    status           TEXT    COLLATE "C" NOT NULL
        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled')),
    priority         INTEGER NOT NULL CHECK (priority IN (0, 1)),
    queue_rank       DOUBLE PRECISION NOT NULL,
    created_at       DOUBLE PRECISION NOT NULL,
    start_deadline   DOUBLE PRECISION,
    started_at       DOUBLE PRECISION,
    finished_at      DOUBLE PRECISION,
    owner            TEXT    COLLATE "C",
    epoch            INTEGER NOT NULL CHECK (epoch >= 0),
    attempt          INTEGER NOT NULL CHECK (attempt >= 0),
    max_attempts     INTEGER NOT NULL CHECK (max_attempts >= 1),
    deaths           INTEGER NOT NULL CHECK (deaths >= 0),
    lone_deaths      INTEGER NOT NULL CHECK (lone_deaths BETWEEN 0 AND deaths),
    lease_until      DOUBLE PRECISION,
    cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
    is_ephemeral     INTEGER NOT NULL CHECK (is_ephemeral IN (0, 1)),
    webhook_url      TEXT,
    base_url         TEXT    NOT NULL,
    store_io         INTEGER NOT NULL CHECK (store_io IN (0, 1)),
    hint_bucket      INTEGER,
    has_begun        INTEGER NOT NULL CHECK (has_begun IN (0, 1)),
    tenant           TEXT    COLLATE "C" NOT NULL,
    key_id           TEXT    COLLATE "C" NOT NULL,
    tags             TEXT    NOT NULL,
    ahead_s          DOUBLE PRECISION NOT NULL,
    picture_key      BYTEA,
    outcome          TEXT,
    -- Of the outcome what is shown without payloads, and of the parameters what decides how much work it is.
    brief            TEXT,
    http_status      INTEGER,
    size             TEXT    NOT NULL,
    -- Who took the submit: a run on an open connection ends with its node.
    writer           TEXT    COLLATE "C" NOT NULL DEFAULT current_setting('fluxserve.writer'),
    -- A claim is whole or absent, and so is an end.
    CHECK ((status = 'running') = (owner IS NOT NULL)),
    CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CHECK ((status IN ('completed', 'failed', 'cancelled')) = (outcome IS NOT NULL)),
    CHECK ((outcome IS NULL) = (finished_at IS NULL)),
    CHECK (params IS NOT NULL OR outcome IS NOT NULL),
    CHECK (status <> 'queued' OR cancel_requested = 0)
-- Rows change a few times and then rest: dead ones must go before an index is full of them.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE INDEX job_waiting_of_tenant ON job (tenant, queue_rank, seq) WHERE status = 'queued';
CREATE INDEX job_deadline ON job (start_deadline) WHERE status = 'queued' AND start_deadline IS NOT NULL;
CREATE INDEX job_running ON job (owner, lease_until) WHERE status = 'running';
CREATE INDEX job_ephemeral ON job (writer) WHERE is_ephemeral = 1 AND finished_at IS NULL;
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX job_private ON job (finished_at) WHERE finished_at IS NOT NULL AND store_io = 0;
CREATE INDEX job_search ON job (tenant, seq);
CREATE INDEX job_by_picture ON job (picture_key, tenant) WHERE picture_key IS NOT NULL;

-- Whatever the code above this file believes: a job ends once, and an epoch never falls.
CREATE FUNCTION job_keeps_its_promises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.outcome IS NOT NULL THEN
        RAISE EXCEPTION 'this job has ended';
    END IF;
    IF NEW.epoch < OLD.epoch THEN
        RAISE EXCEPTION 'an epoch never falls';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER job_promises BEFORE UPDATE ON job FOR EACH ROW EXECUTE FUNCTION job_keeps_its_promises();

CREATE TABLE webhook (
    job_seq      BIGINT PRIMARY KEY REFERENCES job (seq) ON DELETE CASCADE,
    due_at       DOUBLE PRECISION,
    tries        INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    note         TEXT    NOT NULL DEFAULT '',
    round        INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0),
    is_delivered INTEGER NOT NULL DEFAULT 0 CHECK (is_delivered IN (0, 1)),
    receiver     TEXT    COLLATE "C" NOT NULL DEFAULT '',
    -- Which node is about to deliver it, and until when the others leave it alone.
    held_by      TEXT    COLLATE "C" NOT NULL DEFAULT '',
    held_until   DOUBLE PRECISION NOT NULL DEFAULT 0
);
CREATE INDEX webhook_due ON webhook (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX webhook_due_of_receiver ON webhook (receiver, due_at) WHERE due_at IS NOT NULL;

CREATE TABLE webhook_try (
    number      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id      TEXT    COLLATE "C" NOT NULL,
    began_at    DOUBLE PRECISION NOT NULL,
    duration_s  DOUBLE PRECISION NOT NULL,
    http_status INTEGER,
    note        TEXT    NOT NULL,
    verdict     TEXT    NOT NULL CHECK (verdict IN ('delivered', 'again', 'given up'))
);
CREATE INDEX webhook_try_of_job ON webhook_try (job_id, number);
CREATE INDEX webhook_try_age ON webhook_try (began_at);

CREATE TABLE submission (
    job_seq        BIGINT  PRIMARY KEY REFERENCES job (seq) ON DELETE CASCADE,
    tenant         TEXT    COLLATE "C" NOT NULL,
    endpoint       TEXT    COLLATE "C" NOT NULL,
    name           TEXT    COLLATE "C",
    digest         BYTEA   NOT NULL,
    made_at        DOUBLE PRECISION NOT NULL,
    is_undelivered BOOLEAN NOT NULL DEFAULT FALSE,
    writer         TEXT    COLLATE "C" NOT NULL DEFAULT current_setting('fluxserve.writer')
);
CREATE INDEX submission_by_name ON submission (tenant, endpoint, name) WHERE name IS NOT NULL;
CREATE INDEX submission_undelivered ON submission (digest) WHERE is_undelivered AND name IS NULL;
CREATE INDEX submission_unnamed ON submission (writer) WHERE name IS NULL;
CREATE INDEX submission_age ON submission (made_at);

CREATE TABLE job_tag (
    name    TEXT   COLLATE "C" NOT NULL,
    value   TEXT   COLLATE "C" NOT NULL,
    job_seq BIGINT NOT NULL REFERENCES job (seq) ON DELETE CASCADE,
    PRIMARY KEY (name, value, job_seq)
);
CREATE INDEX job_tag_of_job ON job_tag (job_seq);

-- Beside `job`, so that a change of its state does not index its words again.
CREATE TABLE job_text (
    job_seq BIGINT PRIMARY KEY REFERENCES job (seq) ON DELETE CASCADE,
    words   TSVECTOR NOT NULL
);
CREATE INDEX job_text_words ON job_text USING gin (words);

CREATE TABLE usage (
    name     TEXT    COLLATE "C" NOT NULL,
    day      INTEGER NOT NULL, -- since 1970-01-01, UTC
    tenant   TEXT    COLLATE "C" NOT NULL,
    endpoint TEXT    COLLATE "C" NOT NULL,
    key_id   TEXT    COLLATE "C" NOT NULL,
    value    TEXT    COLLATE "C" NOT NULL,
    requests BIGINT  NOT NULL,
    failures BIGINT  NOT NULL,
    units    BIGINT  NOT NULL,
    images   BIGINT  NOT NULL,
    seconds  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (name, day, tenant, endpoint, key_id, value)
) WITH (fillfactor = 70);
CREATE INDEX usage_age ON usage (day);
CREATE INDEX usage_of_key ON usage (key_id, day) WHERE name = '';
CREATE INDEX usage_in_order ON usage (name, tenant, endpoint, key_id, value, day);

CREATE TABLE pause (
    kind  TEXT COLLATE "C" NOT NULL CHECK (kind IN ('model', 'key')),
    name  TEXT COLLATE "C" NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (kind, name)
);

-- Every life of a node as one who writes: its last transaction, and when it was last heard of.
CREATE TABLE writer (
    name      TEXT   COLLATE "C" PRIMARY KEY,
    batch     BIGINT NOT NULL,
    seen_at   DOUBLE PRECISION NOT NULL,
    is_buried BOOLEAN NOT NULL DEFAULT FALSE
) WITH (fillfactor = 50);

-- What nodes say of themselves (JSON), the names in it, and those that shall take no more.
CREATE TABLE node (
    name    TEXT   COLLATE "C" PRIMARY KEY,
    report  TEXT   NOT NULL,
    names   TEXT[] NOT NULL,
    resting TEXT[] NOT NULL DEFAULT '{}',
    seen_at DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50);
