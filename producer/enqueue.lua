-- Enqueue jobs; each enters at most once, whatever is sent again.
--
-- ARGV[1] batch id, or '' for jobs of no batch
-- then 6 a job: id, record (JSON), line, workspace, thread id or '', row or ''
--
-- Keys, as in schemas/names.py: aq:job:<id>, aq:result:<id>, aq:batch:<batch>,
-- aq:rows:<batch>, aq:thread:<workspace>:<thread>, aq:line:<line>, aq:lines, aq:lines:in.
--
-- Returns one number a job: 1 it is new, 0 it was there before. A new row for a batch that was
-- sealed is an error, and nothing was written: such a batch may have ended already.
-- A row's bit is what makes a resumed submission safe: the job's own keys are gone once it ended.

local batch = ARGV[1]
local total = batch ~= '' and redis.call('HGET', 'aq:batch:' .. batch, 'total')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local replies = {}

local function join_line(line, id)
  redis.call('RPUSH', 'aq:line:' .. line, id)
  if redis.call('SADD', 'aq:lines:in', line) == 1 then
    redis.call('RPUSH', 'aq:lines', line)
  end
end

for i = 2, #ARGV, 6 do
  local id, record, line = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local workspace, thread, row = ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local job = 'aq:job:' .. id
  local known = redis.call('EXISTS', job, 'aq:result:' .. id) > 0
    or (batch ~= '' and redis.call('GETBIT', 'aq:rows:' .. batch, row) == 1)
  if not known and total then
    return redis.error_reply('batch ' .. batch .. ' is closed with ' .. total .. ' jobs; send more as another batch')
  end
  if batch ~= '' then
    redis.call('SETBIT', 'aq:rows:' .. batch, row, 1)
  end
  if known then
    replies[#replies + 1] = 0
  else
    local state = 'waiting'
    if thread ~= '' and redis.call('RPUSH', 'aq:thread:' .. workspace .. ':' .. thread, id) > 1 then
      state = 'blocked'
    end
    redis.call('HSET', job, 'record', record, 'state', state, 'epoch', 0, 'attempts', 0,
      'line', line, 'enqueued_ms', now_ms)
    if thread ~= '' then
      redis.call('HSET', job, 'thread', workspace .. ':' .. thread)
    end
    if batch ~= '' then
      redis.call('HSET', job, 'batch', batch)
      redis.call('HINCRBY', 'aq:batch:' .. batch, 'enqueued', 1)
    end
    if state == 'waiting' then
      join_line(line, id)
    end
    replies[#replies + 1] = 1
  end
end

redis.call('PUBLISH', 'aq:wake', 'enqueued')
return replies
