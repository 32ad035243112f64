# nomadfn on a Nomad and a Consul that are there: who may do what, where the secrets lie, and the control services.

locals {
  job_id    = "${var.cluster}-control"
  namespace = var.create_namespace ? nomad_namespace.this[0].name : var.namespace
  token     = var.token != null ? var.token : "nf_${random_password.token[0].result}"

  # The profile that the control services run with; nomadfn reads it as it reads one of `nomadfn.toml`.
  profile = {
    nomad   = var.nomad_address
    consul  = var.consul_address
    cluster = var.cluster
    blobs   = var.blobs
    limits  = var.limits
    job = merge({ for name, value in var.functions : name => value if value != null }, {
      region            = var.region
      namespace         = var.namespace
      datacenters       = var.datacenters
      node_pool         = var.node_pool
      constraints       = [for one in var.constraints : [one.attribute, one.operator, one.value]]
      workload_identity = var.workload_identity
    })
  }

  # The variables of the job spec: texts as they are, everything else as an expression of HCL.
  texts = {
    job_id           = local.job_id
    cluster          = var.cluster
    region           = var.region
    namespace        = local.namespace
    node_pool        = var.node_pool
    driver           = var.control.driver
    image            = var.control.image
    network_mode     = var.control.network_mode
    command          = var.control.command
    service          = var.control.service
    service_provider = var.control.service_provider
    check_interval   = var.control.check_interval
    kill_timeout     = var.control.kill_timeout
    web_service      = var.control.web_service
  }
  expressions = {
    instances   = var.control.instances
    priority    = var.control.priority
    cpu_mhz     = var.control.cpu_mhz
    memory_mib  = var.control.memory_mib
    web_port    = var.control.web_port
    args        = var.control.args
    datacenters = var.datacenters
    constraints = var.constraints
    has_secrets = true
    settings = merge(var.environment, {
      NOMADFN_PROFILE            = var.cluster
      NOMADFN_PROFILE_JSON       = jsonencode(local.profile)
      NOMADFN_INSECURE_PLAINTEXT = tostring(var.insecure_plaintext)
    })
  }
}

resource "random_password" "token" {
  count = var.token == null ? 1 : 0

  length  = 43 # letters and digits: 256 bits
  special = false
}

resource "nomad_namespace" "this" {
  count = var.create_namespace ? 1 : 0

  name        = var.namespace
  description = "nomadfn: the control services of ${var.cluster} and its functions"
}

resource "nomad_variable" "control" {
  namespace = local.namespace
  path      = "nomad/jobs/${local.job_id}"
  items = merge(
    var.blob_credentials,
    { NOMADFN_TOKEN = local.token },
    var.metrics_token != null ? { NOMADFN_METRICS_TOKEN = var.metrics_token } : {},
    var.web_token != null ? { NOMADFN_WEB_TOKEN = var.web_token } : {},
    var.nomad_acl ? { NOMAD_TOKEN = nomad_acl_token.control[0].secret_id } : {},
    var.consul_acl ? { CONSUL_HTTP_TOKEN = data.consul_acl_token_secret_id.control[0].secret_id } : {},
  )
}

resource "nomad_job" "control" {
  # The file that `nomadfn up --nomad` renders, too.
  jobspec = file("${path.module}/../../../jobspecs/nomadfn_jobspecs/control.nomad.hcl")

  detach           = false
  purge_on_destroy = true
  rerun_if_dead    = true

  hcl2 {
    # JSON is HCL, but for what begins a template: `${` in a value stays text.
    vars = merge(local.texts, {
      for name, value in local.expressions :
      name => replace(jsonencode(value), "/([$%])\\{/", "$1$1{")
    })
  }

  depends_on = [nomad_variable.control, consul_keys.overrides]
}
