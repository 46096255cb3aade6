-- Why a running job is to end without another call.
--
-- prelude: schemas/lines.lua
-- ARGV[1] id
--
-- Returns cancelled, expired or over_budget; '' for a job that goes on, or that is not known.

local job = redis.call('HMGET', 'aq:job:' .. ARGV[1], 'called_off', 'batch', 'route', 'enqueued_ms')
return job[3] and called_off_as(job[1], job[2], job[3], job[4]) or ''
