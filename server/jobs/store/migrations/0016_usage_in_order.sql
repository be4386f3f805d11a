-- Usage summed over days, page by page: read in the order of its lines, so that a page ends the reading.
CREATE INDEX usage_in_order ON usage (name, tenant, endpoint, key_id, value, day);
