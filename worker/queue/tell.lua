#!lua
-- Tell parts of a running job's reply to who streams it, if the job is still the caller's.
--
-- KEYS[1] aq:job:<id>  KEYS[2] aq:parts:<id>
-- ARGV[1] id, ARGV[2] epoch, ARGV[3] number of the first part in this epoch, from 0, ARGV[4] seconds to keep them,
-- then the parts (JSON), in order
--
-- Returns 1, or 0 when the job is somebody else's: two workers never tell one job at once. A part's entry is
-- `<epoch>-<number>`, so that one which stands there already is not told twice (the reply to the first call may have
-- been lost), and a reader sees which one it missed. Refused while the server's memory is full: what is not told in
-- parts stands in the result.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return 0
end
local epoch, last = tonumber(ARGV[2]), -1
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
  local told_under, number = string.match(newest[1], '^(%d+)-(%d+)$')
  if tonumber(told_under) == epoch then
    last = tonumber(number)
  end
end
for i = 5, #ARGV do
  local number = tonumber(ARGV[3]) + i - 5
  if number > last then
    redis.call('XADD', KEYS[2], ARGV[2] .. '-' .. string.format('%.0f', number), 'part', ARGV[i])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('PUBLISH', 'aq:done:' .. ARGV[1], 'parts')
return 1
