#!lua flags=allow-oom
-- Release waiting jobs that were cancelled, to end without a call.
--
-- prelude: schemas/lines.lua
-- ARGV[1] most jobs to release, ARGV[2] ms within which each must be claimed
--
-- Returns id, epoch, id, epoch, … They enter no queue: the caller claims them itself.

local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
local room = tonumber(ARGV[1])
local released = {}

while room > 0 do
  local name = redis.call('SRANDMEMBER', 'aq:draining')
  if not name then
    break
  end
  local ids = redis.call('LPOP', 'aq:drain:' .. name, room) or {}
  for _, id in ipairs(ids) do
    local job = 'aq:job:' .. id
    local known = redis.call('HMGET', job, 'state', 'route')
    if known[1] == 'waiting' then
      released[#released + 1] = id
      released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
      redis.call('HSET', job, 'state', 'released', 'cancelled', 1)
      lease(id, known[2], until_ms)
      redis.call('ZADD', 'aq:drained', until_ms, id)
    end
  end
  room = room - #ids
  if redis.call('EXISTS', 'aq:drain:' .. name) == 0 then
    redis.call('SREM', 'aq:draining', name)
  end
end
return released
