-- Whose a job is. Those of before have none, and can be read with every key, as they could when they were made.

ALTER TABLE job ADD COLUMN tenant TEXT NOT NULL DEFAULT '';

-- A claim goes through the line of one tenant at a time.
DROP INDEX job_waiting;
CREATE INDEX job_waiting_of_tenant ON job (tenant, queue_rank, seq) WHERE status = 'queued';
