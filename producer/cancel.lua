#!lua flags=allow-oom
-- Call one job off, at once.
--
-- prelude: schemas/lines.lua
-- ARGV[1] id
--
-- A job that waits, for its turn, a time or its thread, is drained by the workers to its end in SQL
-- (worker/queue/drain.lua), like those of a cancelled batch. One that is out ends at its next step: one
-- that waits for the limiter gives its place back, a call in flight is finished and counted, and if its
-- reply is the job's answer it stands. What called a job off first stands. Keys: those of the prelude,
-- aq:result:<id>, aq:snoozed, aq:waiters.
--
-- Returns 1 if it was called off, now or before, 0 if it has ended, -1 if it is not known.

-- Taking a job out of a line looks through the line. In a longer one it stays, and is passed over when its turn
-- comes: release.lua takes who waits there and nobody else.
local LOOK_THROUGH_AT_MOST = 5000

local id = ARGV[1]
local key = 'aq:job:' .. id
redis.call('ZREM', 'aq:waiters', id)
local job = redis.call('HMGET', key, 'state', 'priority', 'batch', 'route', 'called_off', 'enqueued_ms')
local state, priority, batch, route, mark, enqueued_ms = unpack(job, 1, 6)
if not state then
  return redis.call('EXISTS', 'aq:result:' .. id) - 1
end
local batch_why = batch and batch_called_off_as(batch)

local function leave_line()
  local line = line_name(priority, batch, route)
  if redis.call('LLEN', 'aq:line:' .. line) > LOOK_THROUGH_AT_MOST then
    return
  end
  redis.call('LREM', 'aq:line:' .. line, 1, id)
  if redis.call('EXISTS', 'aq:line:' .. line) == 0 then
    unregister_line(line)
  end
end

local function call_off(leave)
  redis.call('HSET', key, 'called_off', 'cancelled')
  if leave then
    leave()
    rejoin_line(id)
  end
end

if mark then
  return 1
elseif state == 'released' or state == 'running' then
  -- One whose batch has spent its cap goes on as long as it needs no other call: that is no reason to keep it.
  if not batch_why or batch_why == 'over_budget' then
    call_off()
  end
elseif state == 'waiting' then
  if not called_off_as(mark, batch, route, enqueued_ms) then
    call_off(leave_line)
  end
elseif state == 'blocked' then
  if not batch_why then
    call_off(function()
      if batch then
        redis.call('SREM', 'aq:blocked:' .. batch, id)
      end
    end)
  end
elseif state == 'snoozed' then
  call_off(function()
    redis.call('ZREM', 'aq:snoozed', id)
  end)
end
redis.call('PUBLISH', 'aq:wake', 'cancelled')
return 1
