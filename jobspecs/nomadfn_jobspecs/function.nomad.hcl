# One function with one spec as a Nomad job. Its containers are the allocations of its lanes.
#
# `nomadfn render` prints this file and the variables that go with it; with them it also works by hand:
#
#     nomad job run -var-file=embed.vars.json function.nomad.hcl
#
# Values come in as variables and never as text of this file, so that no name or image can add a block.

variable "job_id" {
  type = string
}

variable "cluster" {
  description = "Name of the nomadfn cluster; the control service looks for its jobs by it."
  type        = string
  default     = "nomadfn"
}

variable "app" {
  type    = string
  default = ""
}

variable "function" {
  type    = string
  default = ""
}

variable "spec_digest" {
  description = "What tells this spec of the function from every other one."
  type        = string
  default     = ""
}

variable "region" {
  type    = string
  default = "global"
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "priority" {
  description = "Below 50, so that the jobs of others come first."
  type        = number
  default     = 40
}

variable "constraints" {
  description = "Which nodes may run it."
  type = list(object({
    attribute = string
    operator  = string
    value     = string
  }))
  default = []
}

variable "lanes" {
  description = "Groups that are scaled on their own: Nomad stops the newest of a group first, and offers no other choice."
  type        = number
  default     = 16
}

variable "ceiling" {
  description = "The most containers that one lane may have."
  type        = number
  default     = 100
}

variable "driver" {
  description = "docker, podman, exec or raw_exec."
  type        = string
  default     = "docker"
}

variable "image" {
  description = "For docker and podman. It needs no more than Python 3.11."
  type        = string
  default     = ""
}

variable "network_mode" {
  description = "For docker and podman; empty is the driver's own."
  type        = string
  default     = ""
}

variable "python" {
  description = "The Python of the image, or of the node for exec and raw_exec."
  type        = string
  default     = "python3"
}

variable "agent_url" {
  description = "An address that Nomad fetches the agent from, to local/nomadfn-agent.pyz. Empty: `agent_args` find it."
  type        = string
  default     = ""
}

variable "agent_args" {
  description = "What Python is started with."
  type        = list(string)
  default     = ["$${NOMAD_TASK_DIR}/nomadfn-agent.pyz"]
}

variable "agent_path" {
  description = "Where a control service offers the agent, behind one of `control_urls`."
  type        = string
  default     = ""
}

variable "control_urls" {
  description = "Where the agent looks for the control service that leads."
  type        = list(string)
}

variable "environments" {
  description = "Folder for the Python environments of images; empty: below the user's cache folder."
  type        = string
  default     = ""
}

variable "workload_identity" {
  description = "Nomad 1.7 or newer: the agent joins with an identity that Nomad has signed."
  type        = bool
  default     = true
}

variable "cpu_mhz" {
  type    = number
  default = 250
}

variable "memory_mib" {
  type    = number
  default = 256
}

variable "gpu_device" {
  type    = string
  default = "nvidia/gpu"
}

variable "gpu_count" {
  type    = number
  default = 0
}

variable "gpu_models" {
  description = "Regular expressions of model names, the preferred one first; none is any model."
  type        = list(string)
  default     = []
}

variable "gpu_memory_min_mib" {
  type    = number
  default = 0
}

variable "gpu_memory_max_mib" {
  type    = number
  default = 0
}

variable "kill_timeout" {
  description = "How long a container may take to finish its inputs. Nodes cap it by their max_kill_timeout."
  type        = string
  default     = "30s"
}

locals {
  has_image  = contains(["docker", "podman"], var.driver)
  gpu_ranked = length(var.gpu_models) > 1 ? var.gpu_models : []
}

job "nomadfn-function" {
  id          = var.job_id
  name        = var.job_id
  type        = "service"
  region      = var.region
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool
  priority    = var.priority

  meta = {
    nomadfn          = var.cluster
    nomadfn_app      = var.app
    nomadfn_function = var.function
    nomadfn_spec     = var.spec_digest
    nomadfn_lanes    = "${var.lanes}"
  }

  dynamic "constraint" {
    for_each = var.constraints
    content {
      attribute = constraint.value.attribute
      operator  = constraint.value.operator
      value     = constraint.value.value
    }
  }

  # A deployment would refuse scaling while it runs.
  update {
    max_parallel = 0
  }

  dynamic "group" {
    for_each = range(var.lanes)
    labels   = ["lane-${group.value}"]

    content {
      # nomadfn scales it; registering again keeps the count that it has.
      count = 0

      scaling {
        enabled = false
        min     = 0
        max     = var.ceiling
      }

      restart {
        attempts = 2
        interval = "1m"
        delay    = "1s"
        mode     = "fail"
      }

      # A crash loop backs off.
      reschedule {
        delay          = "5s"
        delay_function = "exponential"
        max_delay      = "5m"
        unlimited      = true
      }

      task "agent" {
        driver       = var.driver
        kill_signal  = "SIGTERM"
        kill_timeout = var.kill_timeout

        dynamic "artifact" {
          for_each = var.agent_url == "" ? [] : [var.agent_url]
          content {
            source      = artifact.value
            mode        = "file"
            destination = "local/nomadfn-agent.pyz"
          }
        }

        dynamic "config" {
          for_each = local.has_image ? [] : [0]
          content {
            command = var.python
            args    = var.agent_args
          }
        }

        dynamic "config" {
          for_each = local.has_image ? [0] : []
          content {
            image        = var.image
            command      = var.python
            args         = var.agent_args
            network_mode = var.network_mode
          }
        }

        env = {
          NOMADFN_CONTROL_URLS = join(" ", var.control_urls)
          NOMADFN_ENVIRONMENTS = var.environments
          NOMADFN_AGENT        = var.agent_path
        }

        dynamic "identity" {
          for_each = var.workload_identity ? [0] : []
          content {
            name = "nomadfn"
            aud  = ["nomadfn"]
            file = true
            ttl  = "1h"
          }
        }

        # Older than 1.7: a token for this one job, which the control service keeps in the job's own Nomad variable.
        dynamic "template" {
          for_each = var.workload_identity ? [] : [0]
          content {
            destination = "secrets/nomadfn.env"
            env         = true
            change_mode = "noop"
            data        = <<-EOT
              NOMADFN_JOIN_TOKEN={{ with nomadVar (print "nomad/jobs/" (env "NOMAD_JOB_ID")) }}{{ .join_token }}{{ end }}
            EOT
          }
        }

        resources {
          cpu    = var.cpu_mhz
          memory = var.memory_mib

          dynamic "device" {
            for_each = var.gpu_count > 0 ? [var.gpu_device] : []
            iterator = gpu
            labels   = [gpu.value]
            content {
              count = var.gpu_count

              dynamic "constraint" {
                for_each = length(var.gpu_models) > 0 ? [join("|", var.gpu_models)] : []
                content {
                  attribute = "${device.model}"
                  operator  = "regexp"
                  value     = "^(${constraint.value})$"
                }
              }

              dynamic "constraint" {
                for_each = var.gpu_memory_min_mib > 0 ? [var.gpu_memory_min_mib] : []
                content {
                  attribute = "${device.attr.memory}"
                  operator  = ">="
                  value     = "${constraint.value} MiB"
                }
              }

              dynamic "constraint" {
                for_each = var.gpu_memory_max_mib > 0 ? [var.gpu_memory_max_mib] : []
                content {
                  attribute = "${device.attr.memory}"
                  operator  = "<="
                  value     = "${constraint.value} MiB"
                }
              }

              dynamic "affinity" {
                for_each = local.gpu_ranked
                content {
                  attribute = "${device.model}"
                  operator  = "regexp"
                  value     = "^(${affinity.value})$"
                  weight    = ceil(100 * (length(var.gpu_models) - affinity.key) / length(var.gpu_models))
                }
              }
            }
          }
        }
      }
    }
  }
}
