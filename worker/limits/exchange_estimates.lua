-- Merges what one worker has seen of calls into what all have, and returns that.
--
-- KEYS: aq:seen:<calls that are alike>, hashes of histograms: `c<bucket>` -> completions of that size, `p<bucket>` ->
--   prompts whose count by the provider was so many times ours (worker/limits/learned.py).
-- ARGV: seconds until a histogram that nobody asks about is gone; how many it holds before it is halved; then for each
--   key how many fields follow, and as often: field, count.
-- Returns for each key its fields and counts, flat.
local ttl_s, halve_at = ARGV[1], tonumber(ARGV[2])

-- What is rounded away goes to the next bucket, so that quantiles stay.
local function halve(key, kind, counts)
  local buckets = {}
  for field in pairs(counts) do
    if string.sub(field, 1, 1) == kind then
      buckets[#buckets + 1] = tonumber(string.sub(field, 2))
    end
  end
  table.sort(buckets)
  local carried = 0
  for _, bucket in ipairs(buckets) do
    local field = kind .. string.format('%d', bucket)
    local total = counts[field] + carried
    carried = total % 2
    counts[field] = (total - carried) / 2
    if counts[field] > 0 then
      redis.call('HSET', key, field, counts[field])
    else
      redis.call('HDEL', key, field)
      counts[field] = nil
    end
  end
end

local at, answers = 3, {}
for number, key in ipairs(KEYS) do
  local fields = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, fields do
    redis.call('HINCRBY', key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
  local flat, counts, totals = redis.call('HGETALL', key), {}, { c = 0, p = 0 }
  for place = 1, #flat, 2 do
    local kind, count = string.sub(flat[place], 1, 1), tonumber(flat[place + 1])
    counts[flat[place]] = count
    totals[kind] = (totals[kind] or 0) + count
  end
  local halved = false
  for _, kind in ipairs({ 'c', 'p' }) do
    if totals[kind] > halve_at then
      halve(key, kind, counts)
      halved = true
    end
  end
  if halved then
    flat = {}
    for field, count in pairs(counts) do
      flat[#flat + 1] = field
      flat[#flat + 1] = count
    end
  end
  redis.call('EXPIRE', key, ttl_s)
  answers[number] = flat
end
return answers
