-- What one key has used since a day, asked at every submit of a key with a budget.
CREATE INDEX usage_of_key ON usage (key_id, day, endpoint, units) WHERE name = '';
