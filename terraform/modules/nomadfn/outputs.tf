output "token" {
  description = "nomadfn's own token: NOMADFN_TOKEN of the owner and of programs."
  value       = local.token
  sensitive   = true
}

output "consul_token" {
  description = "CONSUL_HTTP_TOKEN of programs: it sees which control service leads, and nothing else. Null without ACLs."
  value       = var.consul_acl ? data.consul_acl_token_secret_id.program[0].secret_id : null
  sensitive   = true
}

output "address" {
  description = "Name of the control services in the catalog of Consul (or of Nomad, with that provider). Which of them leads says Consul; nomadfn looks there by itself."
  value       = var.control.service_provider == "consul" ? "${var.cluster}.${var.control.service}.service.consul" : var.control.service
}

output "namespace" {
  description = "Nomad namespace of the control services and of all functions."
  value       = local.namespace
}

output "control_job" {
  description = "Id of the control services' Nomad job."
  value       = nomad_job.control.id
}

output "profile" {
  description = "For nomadfn.toml where programs run: the text of a profile with the name of the cluster. Change the addresses where programs reach Nomad and Consul by others."
  value       = <<-EOT
    [profiles.${var.cluster}]
    nomad = ${jsonencode(var.nomad_address)}
    consul = ${jsonencode(var.consul_address)}
    cluster = ${jsonencode(var.cluster)}
    blobs = ${jsonencode(var.blobs)}
    [profiles.${var.cluster}.job]
    namespace = ${jsonencode(var.namespace)}
    region = ${jsonencode(var.region)}
  EOT
}
