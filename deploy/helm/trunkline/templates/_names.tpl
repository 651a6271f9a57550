{{- define "trunkline.name" -}}
{{- if contains "trunkline" .Release.Name }}{{ .Release.Name | trunc 53 | trimSuffix "-" }}{{ else }}{{ printf "%s-trunkline" .Release.Name | trunc 53 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "trunkline.account" -}}
{{- .Values.serviceAccount.name | default (ternary (include "trunkline.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "trunkline.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What selects the pods of a component: (list . "gateway"). */}}
{{- define "trunkline.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: trunkline
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "trunkline.labels" -}}
{{- $root := index . 0 -}}
{{ include "trunkline.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* The beginning of a pod's spec, the same for both components. */}}
{{- define "trunkline.pod" -}}
serviceAccountName: {{ include "trunkline.account" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
volumes:
  - name: routing
    configMap: {name: {{ .Values.routingConfigMap | default (printf "%s-routing" (include "trunkline.name" .)) }}}
  - name: state
    emptyDir: {sizeLimit: 64Mi}
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  {{- with .Values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "trunkline.container" -}}
image: {{ include "trunkline.image" . }}
{{- if ne .Values.image.pullPolicy "IfNotPresent" }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: routing, mountPath: /etc/trunkline, readOnly: true}
  - {name: state, mountPath: /var/lib/trunkline}
  - {name: tmp, mountPath: /tmp}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
envFrom:
  - secretRef: {name: {{ .Values.secrets.targets }}, optional: true}
  {{- with .Values.envFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Redis and the peppers: (list . URL SECRET). */}}
{{- define "trunkline.store" -}}
{{- $root := index . 0 -}}
- name: TRUNKLINE_REDIS_URL
  {{- if index . 1 }}
  value: {{ index . 1 | quote }}
  {{- else }}
  valueFrom: {secretKeyRef: {name: {{ index . 2 }}, key: redis-url}}
  {{- end }}
- name: TRUNKLINE_PEPPERS
  valueFrom: {secretKeyRef: {name: {{ $root.Values.secrets.gateway }}, key: peppers}}
{{- end }}
