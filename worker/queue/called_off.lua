-- Whether a running job is to end without another call.
--
-- prelude: schemas/lines.lua
-- ARGV[1] id

local job = redis.call('HMGET', 'aq:job:' .. ARGV[1], 'cancelled', 'batch', 'route', 'enqueued_ms')
return job[3] and is_cancelled(job[1], job[2], job[3], job[4]) and 1 or 0
