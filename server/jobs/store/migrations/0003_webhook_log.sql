-- Every try to deliver a webhook, and orders to deliver one again.

-- Grows with every such order, so that a try that began before it does not settle it.
ALTER TABLE webhook ADD COLUMN round INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0);
ALTER TABLE webhook ADD COLUMN is_delivered INTEGER NOT NULL DEFAULT 0 CHECK (is_delivered IN (0, 1));
UPDATE webhook SET is_delivered = 1 WHERE due_at IS NULL AND note LIKE 'HTTP 2%';

-- By the request's id and not by its row: what was tried can be told longer than the result is kept.
CREATE TABLE webhook_try (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id      TEXT    NOT NULL,
    began_at    REAL    NOT NULL,
    duration_s  REAL    NOT NULL,
    http_status INTEGER,
    note        TEXT    NOT NULL,
    verdict     TEXT    NOT NULL CHECK (verdict IN ('delivered', 'again', 'given up'))
) STRICT;

CREATE INDEX webhook_try_of_job ON webhook_try (job_id, number);
CREATE INDEX webhook_try_age ON webhook_try (began_at);
