-- Calendar periods in UTC, as gateway/store/periods.py computes them too.
--
-- period(kind, seconds): the number of the day, week (from Monday) or month that holds `seconds` since the epoch, and
-- the seconds at which the next one begins. Months by the civil-calendar arithmetic of Howard Hinnant's
-- "chrono-Compatible Low-Level Date Algorithms", with years that begin in March.
local floor = math.floor

local function month_start(month)
  local year, shifted = floor(month / 12), (month % 12 + 10) % 12
  if shifted > 9 then
    year = year - 1
  end
  local era = floor(year / 400)
  local in_era = year - era * 400
  local in_year = floor((153 * shifted + 2) / 5)
  return (era * 146097 + in_era * 365 + floor(in_era / 4) - floor(in_era / 100) + in_year - 719468) * 86400
end

local function month_of(day)
  local shifted = day + 719468
  local era = floor(shifted / 146097)
  local in_era = shifted - era * 146097
  local year =
    floor((in_era - floor(in_era / 1460) + floor(in_era / 36524) - floor(in_era / 146096)) / 365)
  local in_year = in_era - (365 * year + floor(year / 4) - floor(year / 100))
  local march_based = floor((5 * in_year + 2) / 153)
  local month = (march_based + 2) % 12
  return (year + era * 400 + (march_based > 9 and 1 or 0)) * 12 + month
end

local function period(kind, seconds)
  local day = floor(seconds / 86400)
  if kind == 'day' then
    return day, (day + 1) * 86400
  elseif kind == 'week' then
    local week = floor((day + 3) / 7)
    return week, (week * 7 + 4) * 86400
  end
  local month = month_of(day)
  return month, month_start(month + 1)
end
