-- Reserve what a call may cost under the caps of its job's batch and workspace: both, or neither.
--
-- prelude: schemas/lines.lua
-- prelude: schemas/call_off.lua
-- prelude: worker/spend/reservation.lua
-- ARGV[1] id, ARGV[2] epoch, ARGV[3] nanos, ARGV[4] the workspace's account, ARGV[5] its cap or ''
-- ARGV[6] so many jobs in a row that do not fit end the batch
--
-- Keys are those of the prelude, and of the batch: spend_cap_nano, refused (jobs in a row that did not fit),
-- over_budget_ms. Returns {'stale'} when the job is somebody else's, {'granted'}, or what stands against it:
-- {'wait' or 'over', 'batch' or 'workspace', spent, cap}. 'over': what is spent leaves no room for it.
-- 'wait': others hold the room, and may give some back.
--
-- A batch that waits is short: its lines wait until one of its calls has ended. One of which nothing fits
-- any more is marked, and its waiting jobs are drained without a look at each.

local id, nano = ARGV[1], tonumber(ARGV[3])
local account, account_cap = ARGV[4], tonumber(ARGV[5])
local job = redis.call('HMGET', 'aq:job:' .. id, 'state', 'epoch', 'batch')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then
  return { 'stale' }
end
-- That of this run's call before, or of a request whose answer was lost.
end_reservation(id)

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local batch = job[3] and 'aq:batch:' .. job[3]
local batch_cap = batch and tonumber(redis.call('HGET', batch, 'spend_cap_nano') or '')

local function judge(key, cap)
  if not cap then
    return 'granted', '0'
  end
  local sums = redis.call('HMGET', key, 'spent_nano', 'reserved_nano')
  local spent = sums[1] or '0'
  if tonumber(spent) + nano > cap then
    return 'over', spent
  end
  return tonumber(spent) + tonumber(sums[2] or '0') + nano > cap and 'wait' or 'granted', spent
end

local function against(answer, scope, spent, cap)
  return { answer, scope, spent, string.format('%.0f', cap) }
end

local function set_batch_aside()
  redis.call('HSET', batch, 'short_ms', now_ms)
  unregister_lines(job[3])
end

local for_batch, batch_spent = judge(batch, batch_cap)
local for_workspace, workspace_spent = judge(account, account_cap)
if for_batch == 'over' then
  if redis.call('HINCRBY', batch, 'refused', 1) >= tonumber(ARGV[6]) then
    call_off_batch(job[3], 'over_budget', now_ms)
  end
  return against('over', 'batch', batch_spent, batch_cap)
end
if for_workspace == 'over' then
  return against('over', 'workspace', workspace_spent, account_cap)
end
if for_batch == 'wait' then
  set_batch_aside()
  return against('wait', 'batch', batch_spent, batch_cap)
end
if for_workspace == 'wait' then
  return against('wait', 'workspace', workspace_spent, account_cap)
end

open_account(account)
redis.call('HSET', 'aq:job:' .. id, 'held_nano', ARGV[3], 'held_on', account)
redis.call('HINCRBY', account, 'reserved_nano', ARGV[3])
if account_cap then
  redis.call('HSET', account, 'cap_nano', ARGV[5])
else
  redis.call('HDEL', account, 'cap_nano')
end
if batch then
  redis.call('HINCRBY', batch, 'reserved_nano', ARGV[3])
  redis.call('HDEL', batch, 'refused')
end
return { 'granted' }
