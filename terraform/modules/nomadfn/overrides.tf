resource "consul_keys" "overrides" {
  count = length(var.autoscaler_overrides) > 0 ? 1 : 0

  dynamic "key" {
    for_each = var.autoscaler_overrides

    content {
      path   = "nomadfn/${var.cluster}/overrides/${key.key}"
      value  = jsonencode({ for name, value in key.value : name => value if value != null })
      delete = true
    }
  }
}
