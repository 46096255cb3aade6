-- Release waiting jobs that were cancelled, to end without a call.
--
-- prelude: schemas/lines.lua
-- KEYS[1] aq:draining  KEYS[2] aq:leases
-- ARGV[1] most jobs to release, ARGV[2] ms within which each must be claimed
--
-- Returns id, epoch, id, epoch, … They enter no queue: the caller claims them itself.

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local room = tonumber(ARGV[1])
local released = {}

while room > 0 do
  local field = redis.call('HRANDFIELD', KEYS[1], 1, 'WITHVALUES')
  local line, count = field[1], tonumber(field[2] or '0')
  if not line then
    break
  end
  local take = math.min(room, count < 0 and room or count)
  local ids = redis.call('LPOP', 'aq:line:' .. line, take) or {}
  for _, id in ipairs(ids) do
    local job = 'aq:job:' .. id
    if redis.call('HGET', job, 'state') == 'waiting' then
      released[#released + 1] = id
      released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
      redis.call('HSET', job, 'state', 'released', 'cancelled', 1)
      redis.call('ZADD', KEYS[2], now_ms + tonumber(ARGV[2]), id)
    end
  end
  room = room - #ids
  if #ids < take or count == #ids then
    redis.call('HDEL', KEYS[1], line)
    if redis.call('EXISTS', 'aq:line:' .. line) == 1 then
      register_line(line)
    end
  elseif count > 0 then
    redis.call('HSET', KEYS[1], line, count - #ids)
  end
end
return released
