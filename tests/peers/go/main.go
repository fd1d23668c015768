// A client in Go, with the types of go-tabbyapi's LoRA service and Go's own HTTP and JSON: the five operations, a chat, a
// stream and every kind of refusal, one line of JSON each.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

type LoraCard struct {
	ID      string  `json:"id"`
	Object  string  `json:"object"`
	Created int64   `json:"created"`
	OwnedBy string  `json:"owned_by"`
	Scaling float64 `json:"scaling,omitempty"`
}

type LoraList struct {
	Object string     `json:"object"`
	Data   []LoraCard `json:"data"`
}

type LoraLoadInfo struct {
	Name    string  `json:"name"`
	Scaling float64 `json:"scaling,omitempty"`
}

type LoraLoadRequest struct {
	Loras     []LoraLoadInfo `json:"loras"`
	SkipQueue bool           `json:"skip_queue,omitempty"`
}

type LoraLoadResponse struct {
	Success []string `json:"success"`
	Failure []string `json:"failure"`
}

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type ChatRequest struct {
	Messages    []Message `json:"messages"`
	MaxTokens   int       `json:"max_tokens,omitempty"`
	Temperature float64   `json:"temperature"`
	Stream      bool      `json:"stream,omitempty"`
}

type Choice struct {
	Index        int      `json:"index"`
	Message      *Message `json:"message,omitempty"`
	Delta        *Message `json:"delta,omitempty"`
	FinishReason string   `json:"finish_reason"`
}

type ChatResponse struct {
	ID      string   `json:"id"`
	Choices []Choice `json:"choices"`
}

type Refusal struct {
	Error struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Code    string `json:"code"`
	} `json:"error"`
	Detail  string `json:"detail"`
	Message string `json:"message"`
}

var base, apiKey, adminKey = os.Args[1], os.Args[2], os.Args[3]

func send(method, path, header, key string, body any) *http.Response {
	content, err := json.Marshal(body)
	must(err)
	request, err := http.NewRequest(method, base+path, bytes.NewReader(content))
	must(err)
	if key != "" {
		request.Header.Set(header, key)
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	must(err)
	return response
}

// ask decodes an answer into what its type says, and shows what was decoded.
func ask[T any](name, method, path, header, key string, body any) {
	response := send(method, path, header, key, body)
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var told Refusal
		must(json.NewDecoder(response.Body).Decode(&told))
		same := told.Message == told.Detail && told.Message == told.Error.Message && told.Message != ""
		show(name, map[string]any{"status": response.StatusCode, "code": told.Error.Code, "same": same})
		return
	}
	var answer T
	must(json.NewDecoder(response.Body).Decode(&answer))
	show(name, answer)
}

// stream reads events as go-tabbyapi does: blank lines part them, and the data of each has to be JSON.
func stream(name string, body ChatRequest) {
	body.Stream = true
	response := send("POST", "/v1/chat/completions", "X-Api-Key", apiKey, body)
	defer response.Body.Close()
	reader, text, ends, data := bufio.NewReader(response.Body), "", "", ""
	for {
		line, err := reader.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		if after, found := strings.CutPrefix(line, "data:"); found {
			data += after
		}
		if line == "" && data != "" {
			var chunk ChatResponse
			must(json.Unmarshal([]byte(data), &chunk))
			data = ""
			for _, choice := range chunk.Choices {
				text += choice.Delta.Content
				ends += choice.FinishReason
			}
		}
		if err == io.EOF {
			break
		}
		must(err)
	}
	show(name, map[string]any{"text": text, "ends": ends, "kind": response.Header.Get("Content-Type")})
}

func show(name string, value any) {
	line, err := json.Marshal(map[string]any{name: value})
	must(err)
	fmt.Println(string(line))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	question := ChatRequest{Messages: []Message{{"user", "What is the capital of Germany?"}}, MaxTokens: 9}
	two := LoraLoadRequest{Loras: []LoraLoadInfo{{"pirate", 0.8}, {"shout", 0.5}}}
	one := func(name string, scale float64) LoraLoadRequest {
		return LoraLoadRequest{Loras: []LoraLoadInfo{{name, scale}}}
	}
	ask[LoraList]("list", "GET", "/v1/loras", "X-Admin-Key", adminKey, nil)
	ask[LoraList]("active", "GET", "/v1/loras/active", "X-Api-Key", apiKey, nil)
	ask[LoraLoadResponse]("load", "POST", "/v1/loras/load", "X-Admin-Key", adminKey, two)
	ask[LoraList]("active", "GET", "/v1/loras/active", "Authorization", "Bearer "+apiKey, nil)
	ask[ChatResponse]("chat", "POST", "/v1/chat/completions", "X-Api-Key", apiKey, question)
	stream("stream", question)
	ask[struct{}]("unload", "DELETE", "/v1/loras/active", "X-Admin-Key", adminKey, nil)
	ask[LoraList]("active", "GET", "/v1/loras/active", "X-Api-Key", apiKey, nil)
	stream("stream", question)
	ask[LoraLoadResponse]("no key", "POST", "/v1/loras/load", "", "", two)
	ask[LoraLoadResponse]("api key", "POST", "/v1/loras/load", "X-Api-Key", apiKey, two)
	ask[LoraLoadResponse]("unknown", "POST", "/v1/loras/load", "X-Admin-Key", adminKey, one("parrot", 0.5))
	ask[LoraLoadResponse]("too much", "POST", "/v1/loras/load", "X-Admin-Key", adminKey, one("pirate", 1.5))
}
