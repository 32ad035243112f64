variable "cluster" {
  description = "Name of this nomadfn cluster. Names of jobs, policies and keys in Consul begin with it; several may share one Nomad and Consul."
  type        = string
  default     = "nomadfn"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$", var.cluster))
    error_message = "Give the cluster a name of 1 to 31 lower-case letters, digits and hyphens, with no hyphen at either end."
  }
}

variable "blobs" {
  description = "Where code, large values and the bodies of the journal lie: a folder that every control service sees, or an address such as s3://bucket/prefix. Empty: in Consul, within narrow limits."
  type        = string
  default     = ""

  validation {
    condition     = var.blobs == "" || startswith(var.blobs, "/") || can(regex("^[a-z0-9+]+://", var.blobs))
    error_message = "Give blobs as an absolute path, such as /mnt/nomadfn, or as an address, such as s3://bucket/prefix."
  }
}

variable "blob_credentials" {
  description = "Variables for the package behind the address in blobs: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on. They reach the control services as the other secrets do."
  type        = map(string)
  default     = {}
  sensitive   = true

  validation {
    condition     = alltrue([for name in keys(var.blob_credentials) : can(regex("^(AWS_|AZURE_STORAGE_|FSSPEC_)", name))])
    error_message = "blob_credentials have names that begin with AWS_, AZURE_STORAGE_ or FSSPEC_."
  }
}

variable "token" {
  description = "nomadfn's own token, for the owner of the cluster and for programs that deploy. One is made, and is an output, where this is null."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.token == null || can(regex("^nf_[A-Za-z0-9_-]{16,}$", var.token))
    error_message = "A token starts with nf_ and has at least 16 letters, digits, - or _ behind it."
  }
}

variable "metrics_token" {
  description = "A token, nf_ and so on like nomadfn's own, that reads /metrics and nothing else. Without one, the owner's is needed for that."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.metrics_token == null || can(regex("^nf_[A-Za-z0-9_-]{16,}$", var.metrics_token))
    error_message = "A token starts with nf_ and has at least 16 letters, digits, - or _ behind it."
  }
}

variable "web_token" {
  description = "A token, nf_ and so on like nomadfn's own, for web functions with requires_proxy_auth and nothing else. Without one, the owner's is needed for that."
  type        = string
  default     = null
  sensitive   = true

  validation {
    condition     = var.web_token == null || can(regex("^nf_[A-Za-z0-9_-]{16,}$", var.web_token))
    error_message = "A token starts with nf_ and has at least 16 letters, digits, - or _ behind it."
  }
}

variable "nomad_address" {
  description = "Where the control services find Nomad, on the nodes that they run on."
  type        = string
  default     = "http://127.0.0.1:4646"

  validation {
    condition     = can(regex("^https?://", var.nomad_address))
    error_message = "Give Nomad's address as a URL, such as http://127.0.0.1:4646."
  }
}

variable "consul_address" {
  description = "Where the control services find Consul, on the nodes that they run on."
  type        = string
  default     = "http://127.0.0.1:8500"

  validation {
    condition     = can(regex("^https?://", var.consul_address))
    error_message = "Give Consul's address as a URL, such as http://127.0.0.1:8500."
  }
}

variable "nomad_acl" {
  description = "Make a policy and a token in Nomad with the rights that nomadfn needs, and no others. False for a Nomad without ACLs."
  type        = bool
  default     = true
}

variable "consul_acl" {
  description = "Make policies and tokens in Consul with the rights that nomadfn needs, and no others. False for a Consul without ACLs."
  type        = bool
  default     = true
}

variable "can_read_nodes" {
  description = "Let nomadfn's token in Nomad read nodes. Without that, it cannot say which GPUs and how much room the nodes have."
  type        = bool
  default     = true
}

variable "workload_identity" {
  description = "Containers join with identities that Nomad signs. False for a Nomad older than 1.7, where each function's job gets a token of its own."
  type        = bool
  default     = true
}

variable "namespace" {
  description = "Nomad namespace of the control services and of all functions. Nothing of others belongs in it."
  type        = string
  default     = "nomadfn"

  validation {
    condition     = can(regex("^[A-Za-z0-9-]{1,128}$", var.namespace))
    error_message = "A Nomad namespace has a name of 1 to 128 letters, digits and hyphens."
  }
}

variable "create_namespace" {
  description = "Make the namespace. False for one that is there already."
  type        = bool
  default     = true
}

variable "region" {
  description = "Nomad region of all jobs."
  type        = string
  default     = "global"
}

variable "datacenters" {
  description = "Nomad datacenters of all jobs; \"*\" is any."
  type        = list(string)
  default     = ["*"]

  validation {
    condition     = length(var.datacenters) > 0
    error_message = "Name one datacenter at least, or give [\"*\"]."
  }
}

variable "node_pool" {
  description = "Nomad node pool of all jobs."
  type        = string
  default     = "default"
}

variable "constraints" {
  description = "Which nodes may run the jobs, as in Nomad's constraint blocks."
  type = list(object({
    attribute = string
    operator  = optional(string, "=")
    value     = string
  }))
  default = []
}

variable "functions" {
  description = "What the Nomad job of every function has: the table `job` of a profile. What is left out has nomadfn's own default."
  type = object({
    driver         = optional(string)
    image          = optional(string)
    network_mode   = optional(string)
    python         = optional(string)
    environments   = optional(string)
    ceiling        = optional(number)
    priority       = optional(number)
    cpu_cores      = optional(number)
    memory_mib     = optional(number)
    core_mhz       = optional(number)
    gpu_device     = optional(string)
    kill_timeout_s = optional(number)
  })
  default  = {}
  nullable = false

  validation {
    condition     = contains(["docker", "podman", "exec", "raw_exec"], coalesce(var.functions.driver, "docker"))
    error_message = "functions.driver is docker, podman, exec or raw_exec."
  }

  validation {
    condition     = coalesce(var.functions.priority, 40) >= 1 && coalesce(var.functions.priority, 40) <= 49
    error_message = "functions.priority is from 1 to 49: the jobs of others come first."
  }

  validation {
    condition     = coalesce(var.functions.ceiling, 100) >= 1
    error_message = "functions.ceiling is the number of containers that all functions together may have; give 1 or more."
  }
}

variable "control" {
  description = "The Nomad job of the control services: one instance leads, the others stand by. An image has nomadfn[nomad,consul] installed; with exec and raw_exec, `command` is a Python that has."
  type = object({
    instances        = optional(number, 2)
    driver           = optional(string, "docker")
    image            = optional(string, "")
    network_mode     = optional(string, "host")
    command          = optional(string, "python3")
    args             = optional(list(string), ["-m", "nomadfn.control"])
    priority         = optional(number, 49)
    cpu_mhz          = optional(number, 1000)
    memory_mib       = optional(number, 1024)
    kill_timeout     = optional(string, "15s")
    service          = optional(string, "nomadfn-control")
    service_provider = optional(string, "consul")
    check_interval   = optional(string, "5s")
    web_port         = optional(number, -1)
    web_service      = optional(string, "nomadfn-web")
  })
  nullable = false

  validation {
    condition     = contains(["docker", "podman", "exec", "raw_exec"], var.control.driver)
    error_message = "control.driver is docker, podman, exec or raw_exec."
  }

  validation {
    condition     = !contains(["docker", "podman"], var.control.driver) || var.control.image != ""
    error_message = "The drivers docker and podman need control.image, in which nomadfn[nomad,consul] is installed."
  }

  validation {
    condition     = var.control.instances >= 1 && var.control.instances <= 9
    error_message = "control.instances is from 1 to 9; with one, nothing takes over until Nomad has started it again."
  }

  validation {
    condition     = contains(["consul", "nomad"], var.control.service_provider)
    error_message = "control.service_provider is consul or nomad."
  }
}

variable "insecure_plaintext" {
  description = "Accept that tokens and data cross the network unencrypted. Needed wherever Nomad gives the control services an address that is not loopback; without it they refuse to start there."
  type        = bool
  default     = false
}

variable "limits" {
  description = "Limits of the control service, the table `limits` of a profile: pending_inputs, payload_bytes, retention_s and so on."
  type        = map(number)
  default     = {}
}

variable "environment" {
  description = "More variables for the control services, such as NOMAD_CACERT and CONSUL_CACERT with paths on the nodes. Nothing secret: the job shows them."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setintersection(keys(var.environment), ["NOMADFN_TOKEN", "NOMADFN_METRICS_TOKEN", "NOMADFN_WEB_TOKEN", "NOMAD_TOKEN", "CONSUL_HTTP_TOKEN"])) == 0
    error_message = "Tokens do not belong into environment, which everyone sees who may read the job; this module hands them over as a Nomad variable."
  }
}

variable "autoscaler_overrides" {
  description = "Autoscaler settings by APP/FUNCTION that hold over those of the program, written to Consul, where they take effect at once. Who sets them here does not set them with `nomadfn function scale`, too."
  type = map(object({
    min_containers     = optional(number)
    max_containers     = optional(number)
    buffer_containers  = optional(number)
    scaledown_window_s = optional(number)
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.autoscaler_overrides) : can(regex("^[^/]+/[^/]+$", name))])
    error_message = "Name each function as APP/FUNCTION, such as hello/square."
  }
}
