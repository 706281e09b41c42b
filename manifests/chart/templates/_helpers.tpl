{{/* Name of the chart, or what replaces it. */}}
{{- define "mim.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/*
Name of the objects. At most 50 characters, so that suffixes fit into 63. A release may be called what no Service may: with
dots, or with a digit at the beginning. Names stand in quotes wherever they are rendered: "on", "1e3" and "null" are names, too.
*/}}
{{- define "mim.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = include "mim.name" . -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | replace "." "-" -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- $name = printf "mim-%s" $name -}}
{{- end -}}
{{- $name | trunc 50 | trimAll "-" -}}
{{- end -}}

{{/* Labels that select the webhook's pods; they never change between versions. */}}
{{- define "mim.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mim.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: webhook
{{- end -}}

{{/* The labels that the chart itself gives every object. */}}
{{- define "mim.ownLabels" -}}
{{ include "mim.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "mim.labels" -}}
{{ include "mim.ownLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The annotations of an object, with their key; nothing where there are none. Call with a dict of root and, where the object
has annotations of its own, more: they win.
*/}}
{{- define "mim.annotations" -}}
{{- with merge (dict) (default (dict) .more) (default (dict) .root.Values.commonAnnotations) -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Labels of what `helm test` makes: not those of the webhook's pods, or the Service would send requests there. */}}
{{- define "mim.testLabels" -}}
app.kubernetes.io/name: {{ include "mim.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Annotations of what `helm test` makes; call with the weight, by which Helm orders it. */}}
{{- define "mim.testAnnotations" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
{{- end -}}

{{/* The restricted Pod Security Standard, for a pod and for its container. */}}
{{- define "mim.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "mim.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Name of the webhook configuration: fixed, because its place in the order of names matters. */}}
{{- define "mim.configurationName" -}}
multus-ip-manager
{{- end -}}

{{- define "mim.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mim.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be given when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mim.secretName" -}}
{{- if .Values.certs.secretName -}}
{{- .Values.certs.secretName -}}
{{- else if eq .Values.certs.source "self" -}}
{{- printf "%s-ca" (include "mim.fullname" .) -}}
{{- else if eq .Values.certs.source "cert-manager" -}}
{{- printf "%s-tls" (include "mim.fullname" .) -}}
{{- else -}}
{{- fail "certs.secretName must name an existing Secret of type kubernetes.io/tls when certs.source is secret" -}}
{{- end -}}
{{- end -}}

{{/* The name or address by which the API server calls the webhook; the certificate must be for it. */}}
{{- define "mim.servingName" -}}
{{- if .Values.webhook.url -}}
{{- (urlParse .Values.webhook.url).hostname -}}
{{- else -}}
{{- printf "%s.%s.svc" (include "mim.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/* "ip" or "dns": what mim.servingName is. */}}
{{- define "mim.servingNameKind" -}}
{{- $name := include "mim.servingName" . -}}
{{- if or (contains ":" $name) (regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+$" $name) -}}ip{{- else -}}dns{{- end -}}
{{- end -}}

{{/* Call with a dict of image and chart. */}}
{{- define "mim.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Folder in which the Secret with the certificate is mounted. */}}
{{- define "mim.certDir" -}}
/etc/multus-ip-manager/certs
{{- end -}}

{{/*
Refuses a second release. What is asked of the cluster decides only whether the chart is rendered, never what: the output is
the same everywhere. A configuration that no release owns is left to Helm: it refuses too, and lets it be taken over with
--take-ownership. So is one whose release went with its namespace, for no advice about that release would help.
*/}}
{{- define "mim.checkOwner" -}}
{{- $found := lookup "admissionregistration.k8s.io/v1" "MutatingWebhookConfiguration" "" (include "mim.configurationName" .) -}}
{{- $annotations := default (dict) (dig "metadata" "annotations" (dict) $found) -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if and $name (or (ne $name .Release.Name) (ne $namespace .Release.Namespace)) -}}
{{- $home := lookup "v1" "Namespace" "" $namespace -}}
{{- if and $home (not (dig "metadata" "deletionTimestamp" "" $home)) -}}
{{- $labels := default (dict) (dig "metadata" "labels" (dict) $found) -}}
{{- $left := printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s,app.kubernetes.io/component=webhook" (get $labels "app.kubernetes.io/name") $name -}}
{{- fail (printf "this cluster has the chart already, as release %q in namespace %q. One release serves all namespaces, and there can be no second one: both would need the webhook configuration %q, whose name is fixed because it decides its place among other webhooks. Upgrade that release (helm upgrade %s CHART --namespace %s), or remove it first (helm uninstall %s --namespace %s). If Helm does not know it (its namespace was deleted and made again), remove what is left: kubectl delete mutatingwebhookconfigurations,clusterroles,clusterrolebindings --selector %s" $name $namespace (include "mim.configurationName" .) $name $namespace $name $namespace $left) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration such as 2160h0m0s. */}}
{{- define "mim.seconds" -}}
{{- $seconds := 0 -}}
{{- range $part := regexFindAll "[0-9]+[hms]" . -1 -}}
{{- $seconds = trimSuffix (substr (int (sub (len $part) 1)) -1 $part) $part | int64 | mul (get (dict "h" 3600 "m" 60 "s" 1) (substr (int (sub (len $part) 1)) -1 $part)) | add $seconds -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* Refuses what the webhook would refuse when it starts. What is not said by the schema of the values is said here. */}}
{{- define "mim.check" -}}
{{- $deadline := .Values.agent.deadline -}}
{{- if $deadline -}}
{{- $seconds := 0 -}}
{{- range $unit, $factor := dict "h" 3600 "m" 60 "s" 1 -}}
{{- $seconds = regexFind (printf "[0-9]+%s" $unit) $deadline | trimSuffix $unit | int64 | mul $factor | add $seconds -}}
{{- end -}}
{{- if or (not (regexMatch "^((0|[1-9][0-9]{0,4})h)?((0|[1-9][0-9]{0,4})m)?((0|[1-9][0-9]{0,4})s)?$" $deadline)) (lt $seconds 1) (gt $seconds 86400) -}}
{{- fail (printf "agent.deadline is %q; allowed is a duration from 1s to 24h in whole hours, minutes and seconds, such as 90s, 30m or 1h30m" $deadline) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^(https://[^/]+/?)?$" (default "" .Values.webhook.url)) -}}
{{- fail (printf "webhook.url is %q; it must be https://HOST[:PORT] without a path: the webhook answers at /mutate and below, which the chart appends" .Values.webhook.url) -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.agent.env -}}
{{- if hasPrefix "MIM_" .name -}}
{{- fail (printf "agent.env names %s; names that begin with MIM_ belong to the agent" .name) -}}
{{- end -}}
{{- if has .name $names -}}
{{- fail (printf "agent.env names %s twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $names = list -}}
{{- range .Values.extraEnv -}}
{{- if has .name $names -}}
{{- fail (printf "extraEnv names %s twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- range $value := list "commonLabels" "podLabels" -}}
{{- range $key, $_ := default (dict) (get $.Values $value) -}}
{{- if has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- fail (printf "%s sets %s, which the chart sets itself: by these labels the Service finds the webhook's pods" $value $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (dig "podMonitor" "enabled" false (default (dict) .Values.metrics)) (not .Values.agent.metricsPort) -}}
{{- fail "metrics.podMonitor.enabled needs agent.metricsPort: without a port there is nothing to scrape" -}}
{{- end -}}
{{- if eq .Values.certs.source "cert-manager" -}}
{{- $times := .Values.certs.certManager -}}
{{- $duration := include "mim.seconds" $times.duration | int64 -}}
{{- if le $duration (include "mim.seconds" $times.renewBefore | int64) -}}
{{- fail (printf "certs.certManager.duration is %s; it must be longer than renewBefore (%s), or the certificate would always be due" $times.duration $times.renewBefore) -}}
{{- end -}}
{{- if or (lt $duration 3600) (lt (include "mim.seconds" $times.renewBefore | int64) 300) -}}
{{- fail (printf "certs.certManager.duration is %s and renewBefore %s; cert-manager refuses a duration below 1h and a renewBefore below 5m" $times.duration $times.renewBefore) -}}
{{- end -}}
{{- if and (not $times.issuerRef.name) (gt $duration 31536000) -}}
{{- fail (printf "certs.certManager.duration is %s; with the release's own CA, which is renewed a year before its end, it can be 8760h at most, or a certificate could outlive the CA" $times.duration) -}}
{{- end -}}
{{- end -}}
{{- if ne (list .Values.ports.webhook .Values.ports.health .Values.ports.metrics | uniq | len) 3 -}}
{{- fail "ports.webhook, ports.health and ports.metrics must differ" -}}
{{- end -}}
{{- $replicas := int .Values.replicaCount -}}
{{- if and .Values.podDisruptionBudget.enabled (not .Values.webhook.url) (gt $replicas 1) -}}
{{- $away := .Values.podDisruptionBudget.maxUnavailable -}}
{{- /* Kubernetes rounds a percentage up. */ -}}
{{- $count := ternary (div (add (mul (toString $away | trimSuffix "%" | int64) $replicas) 99) 100) (int64 $away) (kindIs "string" $away) -}}
{{- if ge (int $count) $replicas -}}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %v, which lets node drains end all %d replicas at once; allow fewer, or set podDisruptionBudget.enabled=false" $away $replicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How long the webhook may drain after SIGTERM: what the grace period leaves beside the preStop sleep and one admission. */}}
{{- define "mim.drainSeconds" -}}
{{- add .Values.preStopSeconds .Values.webhook.timeoutSeconds 1 | sub .Values.terminationGracePeriodSeconds | max 0 | min 10 -}}
{{- end -}}

{{/*
The port at which the webhook listens. One that runs elsewhere is called at the port of its URL; the pod's is the chart's own.
*/}}
{{- define "mim.port" -}}
{{- if .Values.webhook.url -}}
{{- default "443" (regexFind ":[0-9]+$" (urlParse .Values.webhook.url).host | trimPrefix ":") -}}
{{- else -}}
{{- .Values.ports.webhook -}}
{{- end -}}
{{- end -}}

{{/* The webhook's arguments, as a YAML list. Deployment and NOTES.txt use the same. */}}
{{- define "mim.args" -}}
{{- include "mim.check" . -}}
{{- $agent := .Values.agent -}}
- serve
- --port={{ include "mim.port" . }}
- --health-port={{ .Values.ports.health }}
- --metrics-port={{ .Values.ports.metrics }}
- --drain-timeout={{ include "mim.drainSeconds" . }}s
- --webhook-configuration={{ include "mim.configurationName" . }}
{{- if eq .Values.certs.source "self" }}
- --cert-source=self
- --namespace={{ .Release.Namespace }}
- --secret-name={{ include "mim.secretName" . }}
- {{ printf "--dns-names=%s" (include "mim.servingName" .) | quote }}
{{- else }}
- --cert-source={{ .Values.certs.source }}
- --cert-dir={{ include "mim.certDir" . }}
{{- if eq .Values.certs.source "cert-manager" }}
- --namespace={{ .Release.Namespace }}
- --certificate={{ include "mim.fullname" . }}
{{- end }}
{{- end }}
- --default-mode={{ $agent.mode }}
- --agent-image={{ include "mim.image" (dict "image" $agent.image "chart" .Chart) }}
{{- with $agent.image.pullPolicy }}
- --agent-pull-policy={{ . }}
{{- end }}
{{- with $agent.deadline }}
- --agent-arg=deadline={{ . }}
{{- end }}
{{- with $agent.logLevel }}
- --agent-arg=log-level={{ . }}
{{- end }}
{{- with $agent.logFormat }}
- --agent-arg=log-format={{ . }}
{{- end }}
{{- if $agent.allowPrimaryENI }}
- --agent-arg=allow-primary-eni=true
{{- end }}
{{- with $agent.vpcCNISubnets }}
- --agent-arg=vpc-cni-subnets={{ join "," . }}
{{- end }}
{{- if $agent.mapBySubnet }}
- --agent-arg=map-by-subnet=true
{{- end }}
{{- with $agent.metricsPort }}
- --agent-arg=metrics-port={{ . }}
{{- end }}
{{- range $agent.env }}
{{- /* The kubelet expands $(VAR) in a container's arguments and makes $ of $$. What is meant for the injected container must
get past the webhook's own kubelet; a webhook that runs elsewhere has none. */}}
- {{ printf "--agent-env=%s=%s" .name (ternary .value (replace "$" "$$" .value) (not (empty $.Values.webhook.url))) | quote }}
{{- end }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/*
Nine tenths of the memory limit in bytes, for GOMEMLIMIT; nothing without a limit (or with 0, which means the same), or where
extraEnv sets it. The forms that people write are understood; any other is refused rather than misread.
*/}}
{{- define "mim.goMemLimit" -}}
{{- $limits := default (dict) (default (dict) .Values.resources).limits -}}
{{- $own := false -}}
{{- range .Values.extraEnv -}}
{{- $own = or $own (eq .name "GOMEMLIMIT") -}}
{{- end -}}
{{- with ternary nil $limits.memory $own -}}
{{- $text := ternary . (int64 . | toString) (kindIs "string" .) | toString -}}
{{- if not (regexMatch "^[0-9]+(Ki|Mi|Gi|k|M|G)?$" $text) -}}
{{- fail (printf "resources.limits.memory is %q; write it as a whole number with Mi or Gi, such as 128Mi" $text) -}}
{{- end -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- $number := regexFind "^[0-9]+" $text | int64 -}}
{{- $unit := get $units (regexFind "[A-Za-z]*$" $text) -}}
{{- with div (mul $number $unit 9) 10 -}}
{{- . -}}
{{- end -}}
{{- end -}}
{{- end -}}
