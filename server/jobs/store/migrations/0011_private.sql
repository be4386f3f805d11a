-- What is kept for an hour only is found without a look at everything that ended since: a sweep is a transaction.
CREATE INDEX job_private ON job (finished_at) WHERE finished_at IS NOT NULL AND store_io = 0;
