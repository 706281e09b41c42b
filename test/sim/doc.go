// Package sim plays the agent's real loop ([run.Sidecar] with its Applier) against models of EC2, metadata and the kernel, in the virtual
// time of testing/synctest, and judges how it ends. Nothing in it sleeps for real: a run of ten minutes takes a millisecond.
//
// # The models
//
// EC2 is one table, address to ENI. Each call has a fate: when it takes effect, when it is answered, and which fault hides the answer:
// slow, throttled, failing with and without effect, lost with and without effect, hanging beyond the three seconds that the real client
// waits, and (with Faults.Late) taking effect up to ten seconds after the client gave up. Searches may lag behind the table by seconds, not
// even monotonically. What is not known of EC2 is switched at random: an address that is assigned where it is already is accepted or
// refused, and answers name the addresses or do not. An ENI may be full for a while.
//
// Metadata's lists lag by up to 90 seconds. The kernel stamps additions in hundredths of a second, tells additions within one of them
// apart, delivers a few milliseconds late, and may lose events. An agent can be stopped, started again with a network-status once the one
// before has ended, or crash: its calls under way still take effect, and nothing else of it reaches anybody.
//
// # What is played
//
// TestRandom draws runs from seeds: two or three pods, on nodes of their own or sharing an ENI, one or two addresses of both families, that
// came with a pod, float, or were found at a restart; handed over by removing and adding in either order and with any gap, kept by both,
// flapping, with stops, crashes and restarts in between. TestHandOver plays all combinations of a small set of gaps and of fates for the
// first calls, for both families, on two nodes and on one shared ENI. TestCrowdedStart starts pods by the thousand against the token
// bucket of one account. The other tests show one rule each.
//
// # What is judged
//
// After the script the faults end, and ten quiet minutes later:
//
//   - Each address that a pod has whose agent works is on exactly one ENI, and that is the one of the pod that claimed it last ([Record.Check];
//     [Verdict] says which other ends are accepted, and why no agent could have done better).
//   - In the last four minutes nothing was asked of EC2, so nobody moves anything any more. Only a pod that came with an address which
//     another holds may go on asking, in vain.
//   - No call took an address from another ENI that the pod did not have when the attempt began, or that its agent had only found there.
//   - No call took an address off the pod's own ENI but to release what came with the pod, is on its interface and unused, when told to
//     stop; or to take back what an unanswered call may have done for an address that has left.
//   - Each agent says "assigned" of exactly the addresses that EC2's table has on its ENI.
//
// # What is not covered
//
// The wire (packages apply and locate have their own tests), netlink (package observe), several ENIs in one pod, interfaces that come and go,
// prefixes, the VPC CNI's holdings, faults of metadata, more than three pods. Time is virtual, so nothing is said about speed. IPv6 with
// a full ENI is left to package apply.
//
// # Replay
//
// A run's script, the fate of each call and the agents' jitter depend on its seed alone. What is left to chance is the order in which
// goroutines and maps are served at one and the same instant, so a failing run, which is shown with its whole trace, is played again
// up to -again times.
package sim
