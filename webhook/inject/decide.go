package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"multus-ip-manager.io/agent/settings"
)

// mirrorAnnotation marks the API object of a static pod.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// WarningPrefix begins every warning, because the API client sees it without
// the name of the webhook.
const WarningPrefix = "multus-ip-manager: "

// Injector decides about pods under one configuration, which can be replaced
// while it is in use. It is safe for concurrent use.
type Injector struct {
	current atomic.Pointer[prepared]
}

// New makes an injector. The error names everything wrong with the configuration.
func New(c Config) (*Injector, error) {
	i := new(Injector)
	if err := i.Update(c); err != nil {
		return nil, err
	}
	return i, nil
}

// Update replaces the configuration as one value; on an error the old one stays.
func (i *Injector) Update(c Config) error {
	p, err := prepare(c)
	if err != nil {
		return err
	}
	i.current.Store(p)
	return nil
}

// Request is what is asked about one pod.
type Request struct {
	// Operation, Resource and SubResource are those of the admission request;
	// all empty means the creation of a pod.
	Operation, Resource, SubResource string
	// Namespace is the request's namespace. It counts, not the pod's own field,
	// which may be empty.
	Namespace string
	// NamespaceMode is what the URL path says about the namespace.
	NamespaceMode NamespaceMode
	// Pod is the pod as JSON.
	Pod []byte
}

// Decision is the answer.
type Decision struct {
	// Action is what happens, Reason why.
	Action Action
	Reason Reason
	// Mode is the pod's effective mode, "" where it was not determined.
	Mode settings.Mode
	// Message is for people: what is wrong and what to do.
	Message string
	// Warnings are shown to the client that creates the pod.
	Warnings []string
	// LogWarnings are the same, without what they quote of annotations that are not ours.
	LogWarnings []string
	// Patch is the JSON patch, nil unless Action is ActionInject or ActionAdjust.
	// It may be shared between decisions and must not be changed.
	Patch []byte
	// AuditAnnotations go to the API server's audit log.
	AuditAnnotations map[string]string
	// Subject names the pod.
	Subject Subject
}

// Decide decides about one pod. It never fails: what cannot be understood is
// denied with a reason.
func (i *Injector) Decide(r Request) Decision {
	d := i.decide(r)
	if why := info(d.Reason); d.Message == "" {
		d.Message = why.Text
	}
	d.AuditAnnotations = map[string]string{"action": string(d.Action), "reason": string(d.Reason)}
	if d.Mode != "" {
		d.AuditAnnotations["mode"] = string(d.Mode)
	}
	return d
}

func (i *Injector) decide(r Request) Decision {
	switch {
	case r.Resource != "" && r.Resource != "pods", r.SubResource != "":
		return Decision{Action: ActionSkip, Reason: NotAPod}
	case r.Operation != "" && r.Operation != "CREATE":
		return Decision{Action: ActionSkip, Reason: NotCreated}
	}
	pod, err := decodePod(r.Pod)
	if err != nil {
		d := Decision{Action: ActionDeny, Reason: BadRequest, Message: fmt.Sprintf("the pod cannot be decoded: %v", err)}
		if pod != nil {
			d.Subject = pod.subject(r.Namespace)
		}
		return d
	}
	e := examination{prepared: i.current.Load(), pod: pod, request: r}
	d := e.run()
	d.Subject = pod.subject(r.Namespace)
	d.Warnings, d.LogWarnings = e.warnings, e.logWarnings
	return d
}

// examination is the state of one decision.
type examination struct {
	*prepared
	pod                   *podView
	class                 Class // without the container that was injected before
	request               Request
	warnings, logWarnings []string
}

func (e *examination) warn(format string, args ...any) {
	text := WarningPrefix + fmt.Sprintf(format, args...)
	e.warnings, e.logWarnings = append(e.warnings, text), append(e.logWarnings, text)
}

// warnOf warns of something whose cause quotes what others wrote: whoever creates the pod may read it, not all who read the log.
func (e *examination) warnOf(text string, cause error) {
	text = WarningPrefix + text
	e.warnings, e.logWarnings = append(e.warnings, text+": "+cause.Error()), append(e.logWarnings, text)
}

func (e *examination) run() Decision {
	annotations := e.pod.Metadata.Annotations
	if reason, skip := e.untouched(); skip {
		if why := info(reason); why.Warn && annotations[settings.Networks] != "" {
			e.warn("not injected (%s): %s", reason, why.Text)
		}
		d := Decision{Action: info(reason).Action, Reason: reason}
		if reason == AlreadyInjected {
			return e.recheck(e.pod.injected())
		}
		return d
	}
	// A setting in the pod itself asks for injection without any network: one
	// may be attached later.
	explicit := annotations[settings.KeyMode] != "" || e.pod.Metadata.Labels[settings.KeyMode] != ""
	value := annotations[settings.Networks]
	var networks []settings.Network
	var networksErr error
	if len(value) <= settings.MaxNetworks {
		networks, networksErr = settings.ParseNetworks(value, e.request.Namespace)
		if len(networks) == 0 && networksErr == nil && !explicit {
			return Decision{Action: ActionSkip, Reason: NoNetworks}
		}
	}
	e.class = e.pod.class(-1)
	mode, denials := e.check(value)
	if len(denials) > 0 {
		e.warnings = nil // the message says it all
		return deny(mode, denials)
	}
	e.warnAbout(mode, networks, networksErr)
	return e.inject(mode)
}

// untouched finds a reason to leave the pod as it is.
func (e *examination) untouched() (Reason, bool) {
	annotations := e.pod.Metadata.Annotations
	switch {
	case e.pod.Metadata.Labels[settings.LabelInject] == settings.InjectDisabled:
		return OptedOut, true
	case hasKey(annotations, mirrorAnnotation):
		return MirrorPod, true
	case e.pod.Spec.HostNetwork:
		return HostNetwork, true
	case e.pod.isWindows():
		return Windows, true
	case e.pod.injected() != "":
		return AlreadyInjected, true
	case e.pod.hasContainer(settings.ContainerName):
		return ForeignContainer, true
	case e.pod.hasContainer(settings.LegacyContainerName):
		return LegacyContainer, true
	}
	return "", false
}

// recheck decides on a pod that was injected before. A webhook that was called after us may have added settings that are not valid, or
// that come too late; or have set resources.
func (e *examination) recheck(injected settings.Mode) Decision {
	e.class = e.pod.class(e.pod.own())
	mode, denials := e.check(e.pod.Metadata.Annotations[settings.Networks])
	e.warnings = nil // told the first time
	if len(denials) > 0 {
		return deny(mode, denials)
	}
	own := e.pod.Metadata.Annotations[settings.KeyMode] != "" || e.pod.Metadata.Labels[settings.KeyMode] != ""
	if own && mode != injected {
		e.warn("the pod was injected in mode %s before; that mode %s is asked for now has no effect: let what asks for it act earlier "+
			"(its webhook configuration's name must sort before %q)", injected, mode, "multus-ip-manager")
	}
	patch, err := e.adjust(injected)
	if err != nil {
		return cannotRender(injected, err)
	}
	reason := AlreadyInjected
	if patch != nil {
		reason = ClassChanged
	}
	return Decision{Action: info(reason).Action, Reason: reason, Mode: injected, Patch: patch}
}

func hasKey(m map[string]string, key string) bool { _, ok := m[key]; return ok }

// denial is one thing for which the pod is refused.
type denial struct {
	reason Reason
	text   string
}

// deny refuses for the first reason and tells all of them.
func deny(mode settings.Mode, denials []denial) Decision {
	texts := make([]string, len(denials))
	for i, d := range denials {
		texts[i] = d.text
	}
	return Decision{Action: ActionDeny, Reason: denials[0].reason, Mode: mode, Message: strings.Join(texts, "; ")}
}

// check finds the effective mode and everything for which the pod is denied.
func (e *examination) check(networks string) (settings.Mode, []denial) {
	mode, denials := e.mode()
	annotations := e.pod.Metadata.Annotations
	for _, p := range settings.CheckAnnotations(annotations) {
		if p.Key != settings.KeyMode {
			denials = append(denials, denial{InvalidSetting, "pod annotation " + p.String()})
		}
	}
	if v := e.pod.Metadata.Labels[settings.LabelInject]; v != "" && v != settings.InjectEnabled {
		denials = append(denials, denial{InvalidSetting, "pod label " + settings.Problem{Key: settings.LabelInject, Value: v,
			Allowed: settings.InjectDisabled + " (opts the pod out), " + settings.InjectEnabled}.String()})
	}
	if cpu := annotations[settings.KeyCPU]; cpu != "" && e.class == Guaranteed {
		if q, err := settings.ParseCPU(cpu); err == nil && q.IsWhole() {
			denials = append(denials, denial{InvalidForPodClass, "pod annotation " + settings.Problem{Key: settings.KeyCPU, Value: cpu,
				Allowed: "in a Guaranteed pod no whole number of cores, for it would be pinned; such as 900m"}.String()})
		}
	}
	if len(networks) > settings.MaxNetworks {
		denials = append(denials, denial{NetworksTooLong, fmt.Sprintf(
			"pod annotation %s has %d bytes, and at most %d fit an environment variable: name fewer networks, or move their options to the NetworkAttachmentDefinitions",
			settings.Networks, len(networks), settings.MaxNetworks)})
	}
	return mode, denials
}

// mode resolves the mode: pod annotation, pod label, namespace label, default.
func (e *examination) mode() (settings.Mode, []denial) {
	annotation, label := e.pod.Metadata.Annotations[settings.KeyMode], e.pod.Metadata.Labels[settings.KeyMode]
	value, where := annotation, "pod annotation "
	switch {
	case e.request.NamespaceMode == NamespaceOther:
		// Also where the pod names a mode itself: a label that would do nothing is
		// told while its author looks, not when the first pod relies on it.
		return "", []denial{{UnknownMode, fmt.Sprintf("the label %s of namespace %q has an unknown value: allowed: %s, or no such label",
			settings.KeyMode, settings.Shorten(e.request.Namespace), joinModes())}}
	case annotation != "":
		if label != "" && label != annotation {
			e.warn("pod annotation %s=%q wins over the pod label with the value %q: make them equal, or remove one", settings.KeyMode, settings.Shorten(annotation), label)
		}
	case label != "":
		value, where = label, "pod label "
	case e.request.NamespaceMode == "" || e.request.NamespaceMode == NamespaceNone:
		value = string(e.config.Mode)
	default:
		value, where = string(e.request.NamespaceMode), "namespace label "
	}
	mode, err := settings.ParseMode(value)
	if err != nil {
		return "", []denial{{UnknownMode, where + settings.Problem{Key: settings.KeyMode, Value: value, Allowed: joinModes()}.String()}}
	}
	if !available(mode) {
		return mode, []denial{{ModeNotAvailable, where + settings.KeyMode + ": " + notAvailable(mode, e.config.Version)}}
	}
	return mode, nil
}

// joinModes lists the modes that can be had.
func joinModes() string {
	var names []string
	for _, m := range settings.Modes() {
		if available(m) {
			names = append(names, string(m))
		}
	}
	return strings.Join(names, ", ")
}

// warnAbout tells what is admitted although it may not do what was meant.
func (e *examination) warnAbout(mode settings.Mode, networks []settings.Network, networksErr error) {
	annotations := e.pod.Metadata.Annotations
	switch {
	case networksErr != nil:
		e.warnOf(fmt.Sprintf("pod annotation %s cannot be parsed, so Multus will not start this pod; correct it", settings.Networks), networksErr)
	case len(networks) == 0 && mode == settings.Init:
		e.warn("the pod asks for no network in %s; mode %s manages only what is attached when the pod starts: name networks, or use mode %s",
			settings.Networks, mode, settings.Sidecar)
	}
	for _, n := range networks {
		if n.DefaultRoute {
			e.warn("network %q sets default-route: if the way to EC2 or instance metadata leads by an address that is not assigned yet, it never will be; use routes instead",
				settings.Shorten(n.Namespace+"/"+n.Name))
			break
		}
	}
	for _, key := range settings.UnknownAnnotations(annotations) {
		e.warn("pod annotation %s is unknown and has no effect: correct or remove it", settings.Shorten(key))
	}
	for _, key := range slices.Sorted(maps.Keys(e.pod.Metadata.Labels)) {
		if strings.HasPrefix(key, settings.Prefix) && key != settings.LabelInject && key != settings.KeyMode {
			e.warn("pod label %s has no effect: make it an annotation", settings.Shorten(key))
		}
	}
	if annotations[settings.KeyCPU] == "" && annotations[settings.KeyMemory] == "" {
		return
	}
	switch e.class {
	case PodLevel:
		e.warn("pod annotations %s and %s have no effect in a pod with resources of its own (spec.resources)", settings.KeyCPU, settings.KeyMemory)
	case BestEffort:
		e.warn("pod annotations %s and %s make this BestEffort pod Burstable; remove them to keep its QoS class", settings.KeyCPU, settings.KeyMemory)
	case Guaranteed, Burstable:
	}
}

// inject picks the prepared patch, or renders one where the pod overrides resources.
func (e *examination) inject(mode settings.Mode) Decision {
	annotations := e.pod.Metadata.Annotations
	class, r, overridden := e.wanted(mode)
	v := variant{mode, class, e.pod.limitsCPU(-1), e.pod.Spec.InitContainers != nil, annotations != nil}
	patch := e.patches[v]
	if overridden {
		var err error
		if patch, err = e.render(v, r); err != nil {
			return cannotRender(mode, err)
		}
	}
	return Decision{Action: ActionInject, Reason: Injected, Mode: mode, Patch: patch}
}

// wanted gives the class by which our container's resources go, those that the installation or the pod itself wants for the mode, and
// whether it is the pod.
func (e *examination) wanted(mode settings.Mode) (class Class, r Resources, overridden bool) {
	class, r = e.class, e.config.Resources[mode]
	cpu, memory := e.pod.Metadata.Annotations[settings.KeyCPU], e.pod.Metadata.Annotations[settings.KeyMemory]
	if cpu != "" {
		r.CPU, r.GuaranteedCPU = cpu, cpu
	}
	if memory != "" {
		r.Memory = memory
	}
	overridden = cpu != "" || memory != ""
	if overridden && class == BestEffort {
		class = Burstable // asked for, and warned of
	}
	return class, r, overridden
}

func cannotRender(mode settings.Mode, err error) Decision {
	return Decision{Action: ActionDeny, Reason: BadRequest, Mode: mode, Message: fmt.Sprintf("the patch cannot be rendered: %v", err)}
}
