# nomadfn on the dev agents of one machine.

terraform {
  required_version = ">= 1.6"

  required_providers {
    consul = {
      source  = "hashicorp/consul"
      version = "~> 2.20"
    }
    nomad = {
      source  = "hashicorp/nomad"
      version = "~> 2.1"
    }
  }
}

provider "nomad" {
  address = var.nomad_address # the token comes from NOMAD_TOKEN
}

provider "consul" {
  address = var.consul_address # the token comes from CONSUL_HTTP_TOKEN
}

module "nomadfn" {
  source = "../../modules/nomadfn"

  cluster           = var.cluster
  nomad_address     = var.nomad_address
  consul_address    = var.consul_address
  blobs             = var.blobs
  nomad_acl         = var.acl
  consul_acl        = var.acl
  workload_identity = var.workload_identity

  control = {
    driver           = "raw_exec"
    command          = var.python
    cpu_mhz          = 100
    memory_mib       = 300
    service_provider = var.service_provider
  }

  functions = {
    driver         = "raw_exec"
    python         = var.python
    ceiling        = 16
    cpu_cores      = 0.05
    memory_mib     = 64
    kill_timeout_s = 5
  }
}
