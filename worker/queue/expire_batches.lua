-- Call off the batches whose time is over.
--
-- prelude: schemas/lines.lua
-- prelude: schemas/call_off.lua
-- KEYS[1] aq:expiring   ARGV[1] most batches to look at now
--
-- Also those of the preludes. Returns how many batches were called off.

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = 0

for _, batch in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', KEYS[1], batch)
  -- One that has spent its cap still takes rows: now it is closed, or who died while sending them left it open.
  local open = redis.call('HEXISTS', 'aq:batch:' .. batch, 'total') == 0
  if not is_over(batch) and (open or not batch_called_off_as(batch)) then
    call_off_batch(batch, 'expired', now_ms)
    expired = expired + 1
  end
end
if expired > 0 then
  redis.call('PUBLISH', 'aq:wake', 'expired')
end
return expired
