# The control service as a Nomad job: one instance leads, the others stand by.
#
#     nomad job run -var-file=control.vars.json control.nomad.hcl
#
# What is secret (NOMADFN_TOKEN, NOMAD_TOKEN, CONSUL_HTTP_TOKEN) is no variable of this file: it stands in the Nomad
# variable `nomad/jobs/<job_id>`, which this job alone may read.

variable "job_id" {
  type    = string
  default = "nomadfn-control"
}

variable "cluster" {
  type    = string
  default = "nomadfn"
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
  description = "Over that of the functions, whose queues it holds."
  type        = number
  default     = 49
}

variable "constraints" {
  type = list(object({
    attribute = string
    operator  = string
    value     = string
  }))
  default = []
}

variable "instances" {
  type    = number
  default = 2
}

variable "driver" {
  description = "docker, podman, exec or raw_exec."
  type        = string
  default     = "docker"
}

variable "image" {
  description = "For docker and podman. nomadfn is installed in it."
  type        = string
  default     = ""
}

variable "network_mode" {
  description = "For docker and podman. The ports are the node's own, so the network is, too."
  type        = string
  default     = "host"
}

variable "command" {
  type    = string
  default = "python3"
}

variable "args" {
  type    = list(string)
  default = ["-m", "nomadfn.control"]
}

variable "settings" {
  description = "Settings of the control service by the names that they have in the environment. Nothing secret."
  type        = map(string)
  default     = {}
}

variable "has_secrets" {
  description = "Read the Nomad variable `nomad/jobs/<job_id>` into the environment."
  type        = bool
  default     = true
}

variable "service" {
  description = "Name under which it is announced. Every instance is; which one leads is in the lease."
  type        = string
  default     = "nomadfn-control"
}

variable "service_provider" {
  description = "consul or nomad."
  type        = string
  default     = "consul"
}

variable "web_port" {
  description = "Of each instance's gateway, which other machines reach then: 0 is a free port, and -1 is none."
  type        = number
  default     = -1
}

variable "web_service" {
  description = "Name under which gateways are announced; the one of the leader alone is healthy."
  type        = string
  default     = "nomadfn-web"
}

variable "check_interval" {
  type    = string
  default = "5s"
}

variable "cpu_mhz" {
  type    = number
  default = 1000
}

variable "memory_mib" {
  type    = number
  default = 1024
}

variable "kill_timeout" {
  type    = string
  default = "15s"
}

locals {
  has_image = contains(["docker", "podman"], var.driver)
  has_web   = var.web_port >= 0
}

job "nomadfn-control" {
  id          = var.job_id
  name        = var.job_id
  type        = "service"
  region      = var.region
  namespace   = var.namespace
  datacenters = var.datacenters
  node_pool   = var.node_pool
  priority    = var.priority

  meta = {
    nomadfn_control = var.cluster
  }

  dynamic "constraint" {
    for_each = var.constraints
    content {
      attribute = constraint.value.attribute
      operator  = constraint.value.operator
      value     = constraint.value.value
    }
  }

  # One after the other: the standby is there before the leader hands over to it.
  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "3s"
    healthy_deadline = "2m"
    auto_revert      = true
  }

  group "control" {
    count = var.instances

    network {
      port "http" {}
      port "data" {}

      dynamic "port" {
        for_each = var.web_port > 0 ? [var.web_port] : []
        labels   = ["web"]
        content {
          static = port.value
        }
      }

      dynamic "port" {
        for_each = var.web_port == 0 ? [0] : []
        labels   = ["web"]
        content {}
      }
    }

    service {
      name     = var.service
      provider = var.service_provider
      port     = "http"
      tags     = [var.cluster, "http"]

      check {
        type     = "http"
        path     = "/healthz"
        interval = var.check_interval
        timeout  = "2s"
      }
    }

    # A standby does not answer web requests, and is none the worse for it.
    dynamic "service" {
      for_each = local.has_web ? [0] : []
      content {
        name     = var.web_service
        provider = var.service_provider
        port     = "web"
        tags     = [var.cluster]

        check {
          type      = "http"
          path      = "/-/healthz"
          interval  = "2s"
          timeout   = "2s"
          on_update = "ignore"
        }
      }
    }

    restart {
      attempts = 5
      interval = "1m"
      delay    = "1s"
      mode     = "delay"
    }

    reschedule {
      delay          = "5s"
      delay_function = "exponential"
      max_delay      = "1m"
      unlimited      = true
    }

    task "control" {
      driver       = var.driver
      kill_signal  = "SIGTERM"
      kill_timeout = var.kill_timeout

      dynamic "config" {
        for_each = local.has_image ? [] : [0]
        content {
          command = var.command
          args    = var.args
        }
      }

      dynamic "config" {
        for_each = local.has_image ? [0] : []
        content {
          image        = var.image
          command      = var.command
          args         = var.args
          network_mode = var.network_mode
        }
      }

      env = merge(var.settings, {
        NOMADFN_HOST      = "${NOMAD_IP_http}"
        NOMADFN_PORT      = "${NOMAD_PORT_http}"
        NOMADFN_DATA_PORT = "${NOMAD_PORT_data}"
        NOMADFN_DATA_DIR  = "${NOMAD_TASK_DIR}/control"
        }, {
        for name, value in { HOST = "${NOMAD_IP_web}", PORT = "${NOMAD_PORT_web}" } :
        "NOMADFN_WEB_${name}" => value if local.has_web
      })

      dynamic "template" {
        for_each = var.has_secrets ? [0] : []
        content {
          destination = "secrets/control.env"
          env         = true
          change_mode = "restart"
          data        = <<-EOT
            {{ with nomadVar (print "nomad/jobs/" (env "NOMAD_JOB_ID")) }}{{ range .Tuples }}{{ .K }}={{ .V | toJSON }}
            {{ end }}{{ end }}
          EOT
        }
      }

      resources {
        cpu    = var.cpu_mhz
        memory = var.memory_mib
      }
    }
  }
}
