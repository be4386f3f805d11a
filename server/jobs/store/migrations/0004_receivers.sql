-- Whom a webhook belongs to (host and port), so that what is due can be chosen from every receiver in turn.

ALTER TABLE webhook ADD COLUMN receiver TEXT NOT NULL DEFAULT '';
UPDATE webhook SET receiver = (
    SELECT lower(substr(rest, 1, instr(rest || '/', '/') - 1))
    FROM (SELECT substr(webhook_url, instr(webhook_url, '://') + 3) AS rest FROM job WHERE seq = webhook.job_seq)
);

CREATE INDEX webhook_due_of_receiver ON webhook (receiver, due_at) WHERE due_at IS NOT NULL;
