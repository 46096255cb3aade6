#!lua flags=allow-oom
-- Release waiting and blocked jobs that were called off, to end without a call.
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
  local key, take = 'aq:drain:' .. name, 'LPOP'
  if string.sub(name, 1, #BLOCKED) == BLOCKED then
    key, take = 'aq:blocked:' .. string.sub(name, #BLOCKED + 1), 'SPOP'
  end
  local ids = redis.call(take, key, room) or {}
  for _, id in ipairs(ids) do
    local job = 'aq:job:' .. id
    local known = redis.call('HMGET', job, 'state', 'route', 'batch', 'enqueued_ms', 'called_off')
    if known[1] == 'waiting' or known[1] == 'blocked' then
      released[#released + 1] = id
      released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
      redis.call('HSET', job, 'state', 'released', 'called_off',
        called_off_as(known[5], known[3], known[2], known[4]) or 'cancelled')
      lease(id, known[2], until_ms)
      redis.call('ZADD', 'aq:drained', until_ms, id)
    end
  end
  room = room - #ids
  if redis.call('EXISTS', key) == 0 then
    redis.call('SREM', 'aq:draining', name)
  end
end
return released
