{{/* The container's variables. Each name once: Kubernetes takes two of a name, and which of them holds is nobody's choice. */}}
{{- define "fluxserve.env" -}}
{{- $ours := include "fluxserve.ownEnv" . | fromYamlArray -}}
{{- $names := dict -}}
{{- range $ours }}{{ $_ := set $names .name true }}{{ end -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $names .name }}{{ fail (printf "extraEnv: %s is set already, by another value of the chart or twice" .name) }}{{ end -}}
{{- $_ := set $names .name true -}}
{{- end -}}
{{- concat $ours .Values.extraEnv | toYaml -}}
{{- end -}}

{{- define "fluxserve.ownEnv" -}}
- { name: FLUXSERVE_MODELS, value: {{ join "," .Values.models | quote }} }
# The Ingress speaks TLS.
- { name: FLUXSERVE_TLS_PORT, value: "0" }
- { name: FLUXSERVE_LOG_FORMAT, value: json }
- { name: FLUXSERVE_OBJECTS, value: {{ .Values.objects.url | quote }} }
- { name: FLUXSERVE_S3_REDIRECT, value: {{ .Values.objects.redirect | quote }} }
- { name: AWS_REGION, value: {{ .Values.objects.region | quote }} }
{{- with .Values.objects.endpoint }}
- { name: FLUXSERVE_S3_ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- with .Values.publicUrl }}
- { name: FLUXSERVE_PUBLIC_URL, value: {{ . | quote }} }
{{- end }}
{{- range $name, $value := .Values.settings }}
- { name: FLUXSERVE_{{ upper $name }}, value: {{ include "fluxserve.text" $value | quote }} }
{{- end }}
{{- if .Values.secrets.metricsKey }}
{{ include "fluxserve.fromSecret" (list . "CALLERS_KEYS" .Values.secrets.apiKeys) }}
{{ include "fluxserve.fromSecret" (list . "METRICS_KEY" .Values.secrets.metricsKey) }}
# Kubernetes puts them together: what is above it in this list.
- { name: FLUXSERVE_API_KEYS, value: "$(CALLERS_KEYS),$(METRICS_KEY)" }
{{- else }}
{{ include "fluxserve.fromSecret" (list . "FLUXSERVE_API_KEYS" .Values.secrets.apiKeys) }}
{{- end }}
{{ include "fluxserve.fromSecret" (list . "FLUXSERVE_STORE" .Values.secrets.store) }}
{{- if .Values.secrets.s3KeyId }}
{{ include "fluxserve.fromSecret" (list . "AWS_ACCESS_KEY_ID" .Values.secrets.s3KeyId) }}
{{ include "fluxserve.fromSecret" (list . "AWS_SECRET_ACCESS_KEY" .Values.secrets.s3Secret) }}
{{- end }}
{{- with .Values.secrets.huggingFaceToken }}
{{ include "fluxserve.fromSecret" (list $ "HF_TOKEN" .) }}
{{- end }}
{{- end -}}
