import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

/** java.net.http as it comes, which offers h2c with its first request. Arguments: address, key, JSON body. */
public class Draw {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        for (String area : new String[] {"run", "run", "queue"}) {
            var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/" + area + "/fal-ai/flux/dev"))
                .header("Content-Type", "application/json")
                .header("Authorization", "Key " + arguments[1])
                .POST(BodyPublishers.ofString(arguments[2]))
                .build();
            var answer = client.send(request, BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
