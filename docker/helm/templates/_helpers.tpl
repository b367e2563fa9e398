{{/* Names and labels. */}}
{{- define "ggufd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "ggufd.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "ggufd.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "ggufd.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "ggufd.selector" -}}
app.kubernetes.io/name: {{ include "ggufd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ggufd.labels" -}}
{{ include "ggufd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The tag is the version with what the image computes on, and a digest overrides it. */}}
{{- define "ggufd.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- $variant := "" }}
{{- with .Values.image.variant }}{{ $variant = printf "-%s" . }}{{ end }}
{{- printf "%s:%s" .Values.image.repository (default (printf "%s%s" .Chart.AppVersion $variant) .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* A value of a setting as its variable has it: whole numbers without an exponent, lists with commas. */}}
{{- define "ggufd.setting" -}}
{{- if kindIs "slice" . }}
{{- join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* All settings: those of the values, and with a plan the context that was planned. */}}
{{- define "ggufd.settings" -}}
{{- $settings := dict }}
{{- with .Values.plan }}
{{- $context := (fromJson .).context }}
{{- $_ := set $settings "ctx_size" (mul (int64 $context.slots) (int64 $context.tokens_each)) }}
{{- $_ := set $settings "parallel" (int64 $context.slots) }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- $_ := set $settings $name $value }}
{{- end }}
{{- if hasPrefix "hf:" .Values.model.source }}
{{- $_ := set $settings "model" .Values.model.source }}
{{- else if .Values.model.source }}
{{- $_ := set $settings "model" (printf "/models/%s" (trimPrefix "/models/" .Values.model.source)) }}
{{- end }}
{{- with .Values.keys.file }}
{{- if .secret }}{{ $_ := set $settings "api_key_file" (printf "/etc/ggufd/keys/%s" .key) }}{{ end }}
{{- end }}
{{- if .Values.keys.allowUnauthenticated }}
{{- $_ := set $settings "allow_unauthenticated" true }}
{{- end }}
{{- if .Values.tls.secret }}
{{- $_ := set $settings "ssl_cert_file" "/etc/ggufd/tls/tls.crt" }}
{{- $_ := set $settings "ssl_key_file" "/etc/ggufd/tls/tls.key" }}
{{- end }}
{{- range $name, $value := $settings }}
- name: GGUFD_{{ upper $name }}
  value: {{ include "ggufd.setting" $value | quote }}
{{- end }}
{{- end }}

{{/* Memory by the plan: on a GPU with all layers there, else with none; and headroom for the other processes. */}}
{{- define "ggufd.memory" -}}
{{- $plan := fromJson .Values.plan }}
{{- $choice := $plan.without_offload }}
{{- if .Values.image.variant }}{{ $choice = last $plan.offload }}{{ end }}
{{- $needed := int64 $choice.ram.needed }}
{{- with $plan.draft }}{{ $needed = add $needed (int64 .ram.needed) }}{{ end }}
{{- printf "%dMi" (add (div $needed 1048576) 1 (int64 .Values.memoryHeadroomMiB)) }}
{{- end }}

{{/* What is set by hand overrides the plan. */}}
{{- define "ggufd.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.plan }}
{{- $memory := dict "memory" (include "ggufd.memory" .) }}
{{- $resources = mergeOverwrite (dict "requests" $memory "limits" (deepCopy $memory)) $resources }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "ggufd.scheme" -}}
{{- if .Values.tls.secret }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{/* What cannot work is said here, and not by a pod that ends. */}}
{{- define "ggufd.check" -}}
{{- $values := .Values }}
{{- if not (or $values.model.source $values.model.volume) }}
{{- fail "no model: set model.source to hf:OWNER/REPO:QUANT, or model.volume to a volume with a GGUF file" }}
{{- end }}
{{- if and $values.model.source (not (hasPrefix "hf:" $values.model.source)) (not $values.model.volume) }}
{{- fail (printf "model.source %s is a file of model.volume, which is not set" $values.model.source) }}
{{- end }}
{{- if not (or $values.keys.admin.secret $values.keys.file.secret $values.keys.allowUnauthenticated) }}
{{- fail "no keys: set keys.admin.secret or keys.file.secret, or keys.allowUnauthenticated to serve everybody" }}
{{- end }}
{{- $open := or (eq (default "admin" $values.settings.metrics_for) "everybody") (not $values.keys.file.secret) }}
{{- if and $values.serviceMonitor.enabled (not $values.keys.admin.secret) (not $open) }}
{{- fail "serviceMonitor wants an admin's key: set keys.admin.secret, or settings.metrics_for to everybody" }}
{{- end }}
{{- end }}

{{- define "ggufd.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
