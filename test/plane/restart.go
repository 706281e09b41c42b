package plane

import (
	"context"
	"fmt"
)

// RestartAPIServer ends kube-apiserver as a node does, with SIGTERM, so that it finishes what it is asked, and starts it again with
// the same address, certificate and data; etcd goes on. It returns when the server answers. Connections are lost meanwhile.
//
// A server that is told to end waits for watches, and is killed after 20 s; the flag shutdown-watch-termination-grace-period has it
// end them.
func (p *Plane) RestartAPIServer(ctx context.Context) error {
	server := p.env.ControlPlane.GetAPIServer()
	if err := server.Stop(); err != nil {
		return fmt.Errorf("stop the API server: %w", err)
	}
	giveUp := context.AfterFunc(ctx, func() { _ = killRecorded(p.Dir) })
	err := server.Start()
	if !giveUp() && ctx.Err() != nil {
		return fmt.Errorf("start of the API server given up: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("start the API server again: %w%s", err, p.logTail("kube-apiserver"))
	}
	return nil
}
