#!lua flags=allow-oom
-- Note that a job's call leaves now: from here on nobody can know that it cost nothing, unless the provider says so.
--
-- KEYS[1] aq:job:<id>   ARGV[1] epoch
--
-- Returns 1, or 0 when the job is somebody else's or holds nothing: then the call must not be made.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'held_nano')
if job[1] ~= 'running' or job[2] ~= ARGV[1] or not job[3] then
  return 0
end
redis.call('HSET', KEYS[1], 'held_sent', 1)
return 1
