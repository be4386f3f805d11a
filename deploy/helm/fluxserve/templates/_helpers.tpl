{{/* The release's name, which everything is called. */}}
{{- define "fluxserve.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fluxserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fluxserve.labels" -}}
{{ include "fluxserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "fluxserve.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "fluxserve.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* A variable from a key of the Secret. Args: (list root variable key). */}}
{{- define "fluxserve.fromSecret" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  valueFrom: { secretKeyRef: { name: {{ $root.Values.secrets.name }}, key: {{ index . 2 }} } }
{{- end -}}

{{/* A setting's value as text. Numbers are floats to Helm, which would write large ones as 1e+06. */}}
{{- define "fluxserve.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Ends of a NetworkPolicy: one rule for these peers on this port. Args: {to, port}. */}}
{{- define "fluxserve.egress" -}}
- ports: [{ protocol: TCP, port: {{ .port }} }]
  {{- with .to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Files of the data folder, and the keys of the Secret that hold them. */}}
{{- define "fluxserve.secretFiles" -}}
{{- with .Values.secrets.files -}}
{{- range $file, $key := dict "token-secret" .tokenSecret "webhook-key.pem" .webhookKey "address-secret" .addressSecret "keys.json" .keyFile }}
{{- if $key }}
{{ $file }}: {{ $key }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Where the bucket's service listens, unless networkPolicy.objects.port says it. */}}
{{- define "fluxserve.objectsPort" -}}
{{- $endpoint := urlParse (.Values.objects.endpoint | default "https://aws") -}}
{{- $usual := ternary "80" "443" (eq $endpoint.scheme "http") -}}
{{- .Values.networkPolicy.objects.port | default (regexFind "[0-9]+$" (regexFind ":[0-9]+$" (trimSuffix "/" $endpoint.host)) | default $usual) | int -}}
{{- end -}}

{{/* What Kubernetes would take, and what could not work: said before anything is made. */}}
{{- define "fluxserve.refuse" -}}
{{- with .Values -}}
{{- if and (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) .autoscaling.enabled -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if ne (empty .secrets.s3KeyId) (empty .secrets.s3Secret) -}}
{{- fail "secrets.s3KeyId and secrets.s3Secret belong together: name both, or neither where the service account has a role" -}}
{{- end -}}
{{- if and .settings.signed_urls_s (not .secrets.files.addressSecret) -}}
{{- fail "settings.signed_urls_s needs secrets.files.addressSecret: else no pod accepts the addresses of another" -}}
{{- end -}}
{{- if and .serviceMonitor.enabled (not .secrets.metricsKey) -}}
{{- fail "serviceMonitor needs secrets.metricsKey" -}}
{{- end -}}
{{- end -}}
{{- end -}}
