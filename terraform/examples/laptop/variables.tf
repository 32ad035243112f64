variable "python" {
  description = "Path of a Python in which nomadfn[nomad,consul] is installed."
  type        = string

  validation {
    condition     = startswith(var.python, "/")
    error_message = "Give the absolute path of the Python, such as /home/you/nomadfn/.venv/bin/python."
  }
}

variable "cluster" {
  description = "Name of the nomadfn cluster."
  type        = string
  default     = "laptop"
}

variable "blobs" {
  description = "Folder for code, arguments and results."
  type        = string
  default     = "/tmp/nomadfn-blobs"
}

variable "nomad_address" {
  description = "Of the dev agent of Nomad."
  type        = string
  default     = "http://127.0.0.1:4646"
}

variable "consul_address" {
  description = "Of the dev agent of Consul."
  type        = string
  default     = "http://127.0.0.1:8500"
}

variable "acl" {
  description = "Whether both agents run with ACLs."
  type        = bool
  default     = false
}

variable "workload_identity" {
  description = "False for a Nomad older than 1.7."
  type        = bool
  default     = true
}

variable "service_provider" {
  description = "Where the control services are registered: consul, or nomad where Nomad has no Consul."
  type        = string
  default     = "consul"
}
