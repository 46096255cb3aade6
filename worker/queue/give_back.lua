#!lua flags=allow-oom
-- Put a released job that nobody claimed back to the head of its line: the worker shuts down.
--
-- prelude: schemas/lines.lua
-- KEYS[1] aq:job:<id>
-- ARGV[1] id, ARGV[2] the hint's epoch
--
-- Without it the job would wait until its time to be claimed is over. Returns 1, or 0 when the hint is stale.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if job[1] ~= 'released' or job[2] ~= ARGV[2] then
  return 0
end
rejoin_line(ARGV[1])
redis.call('PUBLISH', 'aq:wake', 'given back')
return 1
