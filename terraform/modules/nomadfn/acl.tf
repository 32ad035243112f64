# The least rights. Those in Nomad are for one namespace, those in Consul for the keys of one cluster.

resource "nomad_acl_policy" "control" {
  count = var.nomad_acl ? 1 : 0

  name        = local.job_id
  description = "nomadfn: what the control services of ${var.cluster} may do"
  rules_hcl   = <<-EOT
    namespace "${local.namespace}" {
      capabilities = ["list-jobs", "read-job", "parse-job", "submit-job", "scale-job", "read-logs"]
      variables {
        path "nomadfn/secrets/*" {
          capabilities = ["read", "write", "destroy"]
        }
    %{~if !var.workload_identity}
        path "nomad/jobs/${var.cluster}-fn-*" {
          capabilities = ["write", "destroy"]
        }
    %{~endif}
      }
    }
    %{~if var.can_read_nodes}
    node {
      policy = "read"
    }
    %{~endif}
  EOT
}

resource "nomad_acl_token" "control" {
  count = var.nomad_acl ? 1 : 0

  name     = local.job_id
  type     = "client"
  policies = [nomad_acl_policy.control[0].name]
}

resource "consul_acl_policy" "control" {
  count = var.consul_acl ? 1 : 0

  name        = local.job_id
  description = "nomadfn: what the control services of ${var.cluster} may do"
  rules       = <<-EOT
    key_prefix "nomadfn/${var.cluster}/" { policy = "write" }
    key_prefix "nomadfn/${var.cluster}.shards/" { policy = "write" }
    session "nomadfn-lock" { policy = "write" }
    node "nomadfn-lock" { policy = "write" }
    node_prefix "" { policy = "read" }
  EOT
}

resource "consul_acl_token" "control" {
  count = var.consul_acl ? 1 : 0

  description = "nomadfn: the control services of ${var.cluster}"
  policies    = [consul_acl_policy.control[0].name]
  local       = true
}

data "consul_acl_token_secret_id" "control" {
  count = var.consul_acl ? 1 : 0

  accessor_id = consul_acl_token.control[0].id
}

# Programs ask Consul who leads, and nothing else.
resource "consul_acl_policy" "program" {
  count = var.consul_acl ? 1 : 0

  name        = "${var.cluster}-program"
  description = "nomadfn: see which control service of ${var.cluster} leads"
  rules       = "key \"nomadfn/${var.cluster}.shards/0/lock\" { policy = \"read\" }"
}

resource "consul_acl_token" "program" {
  count = var.consul_acl ? 1 : 0

  description = "nomadfn: programs that use ${var.cluster}"
  policies    = [consul_acl_policy.program[0].name]
  local       = true
}

data "consul_acl_token_secret_id" "program" {
  count = var.consul_acl ? 1 : 0

  accessor_id = consul_acl_token.program[0].id
}
