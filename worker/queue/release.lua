-- Release waiting jobs to the workers, one line after the other, within the workers' capacity.
--
-- ARGV[1] most jobs to release now, ARGV[2] ms within which a released job must be claimed,
-- ARGV[3] jobs that may be released above the capacity, in per cent of it
--
-- Keys: aq:workers (capacity of live processes), aq:leases (what is out already), the ring
-- aq:lines with its set aq:lines:in, aq:line:<line>, aq:hold:<line>, aq:job:<id>.
--
-- Returns id, epoch, id, epoch, … A release raises the epoch: only a hint that carries it can
-- claim the job. The lease of a released job ends by itself, so a lost hint costs ARGV[2].

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local capacity = 0
local workers = redis.call('HGETALL', 'aq:workers')
for i = 1, #workers, 2 do
  local threads, expires_ms = string.match(workers[i + 1], '^(%d+) (%d+)$')
  if tonumber(expires_ms) < now_ms then
    redis.call('HDEL', 'aq:workers', workers[i])
  else
    capacity = capacity + tonumber(threads)
  end
end

local room = capacity + math.ceil(capacity * tonumber(ARGV[3]) / 100) - redis.call('ZCARD', 'aq:leases')
room = math.min(room, tonumber(ARGV[1]))

local released = {}
local skipped = 0
while #released < room * 2 and skipped < redis.call('LLEN', 'aq:lines') do
  local line = redis.call('LPOP', 'aq:lines')
  if redis.call('EXISTS', 'aq:hold:' .. line) == 1 then
    redis.call('RPUSH', 'aq:lines', line)
    skipped = skipped + 1
  else
    local id = redis.call('LPOP', 'aq:line:' .. line)
    if not id then
      redis.call('SREM', 'aq:lines:in', line)
    else
      redis.call('RPUSH', 'aq:lines', line)
      skipped = 0
      local job = 'aq:job:' .. id
      if redis.call('HGET', job, 'state') == 'waiting' then
        released[#released + 1] = id
        released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
        redis.call('HSET', job, 'state', 'released')
        redis.call('ZADD', 'aq:leases', now_ms + tonumber(ARGV[2]), id)
      end
    end
  end
end
return released
