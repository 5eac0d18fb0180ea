-- What a site's accounting would refuse, without an accounting database.
-- The file "limits" in the cluster's directory, one line each: PARTITION JOBS CODE WORDS. A job is refused with SLURM's error
-- CODE, after WORDS, while its user has JOBS or more in the PARTITION that have not ended.
local FINISHED = 3 -- JOB_COMPLETE; all states from it on are ends

local function jobs_of(user, partition)
  local count = 0
  for _, job in pairs(slurm.jobs) do
    if job.user_id == user and job.partition == partition and job.job_state % 256 < FINISHED then count = count + 1 end
  end
  return count
end

function slurm_job_submit(job, _, user)
  local file = io.open("@DIR@/limits")
  if file == nil then return slurm.SUCCESS end
  for line in file:lines() do
    local partition, most, code, words = line:match("^(%S+) (%d+) (%d+) (.*)$")
    if partition == job.partition and jobs_of(user, partition) >= tonumber(most) then
      file:close()
      if words ~= "" then slurm.log_user(words) end
      return tonumber(code)
    end
  end
  file:close()
  return slurm.SUCCESS
end

function slurm_job_modify()
  return slurm.SUCCESS
end
