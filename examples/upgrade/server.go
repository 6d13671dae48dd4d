//go:build unix

package main

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// A server is an http.Server that answers everyone it has accepted before it
// ends. http.Server.Shutdown closes a connection whose request is on its way.
type server struct {
	http.Server
	listener    net.Listener
	connections sync.WaitGroup // accepted and not yet closed
	ended       chan error
}

func serve(listener net.Listener, handler http.Handler) *server {
	s := &server{listener: listener, ended: make(chan error, 1)}
	s.Handler = handler
	s.ReadHeaderTimeout = 5 * time.Second
	s.ConnState = s.count
	go func() { s.ended <- s.Serve(listener) }()
	return s
}

func (s *server) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.connections.Done()
	}
}

// shutdown accepts nobody any more and returns when all connections are closed,
// or after 15 seconds.
func (s *server) shutdown() error {
	s.listener.Close()
	<-s.ended                     // all that it has accepted are counted
	s.SetKeepAlivesEnabled(false) // closes those that wait for another request
	answered := make(chan struct{})
	go func() {
		s.connections.Wait()
		close(answered)
	}()
	select {
	case <-answered:
		return nil
	case <-time.After(15 * time.Second):
		return errors.Join(errors.New("requests are broken off after 15 seconds"), s.Close())
	}
}
