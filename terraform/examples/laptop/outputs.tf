output "token" {
  description = "For NOMADFN_TOKEN."
  value       = module.nomadfn.token
  sensitive   = true
}

output "consul_token" {
  description = "For CONSUL_HTTP_TOKEN, with ACLs."
  value       = module.nomadfn.consul_token
  sensitive   = true
}

output "profile" {
  description = "For nomadfn.toml."
  value       = module.nomadfn.profile
}

output "cluster" {
  description = "For NOMADFN_PROFILE."
  value       = var.cluster
}
